// Reacts to outcomes: react QUEUE KEY, as in react pager '*.failed'
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

type event struct {
	Type string `json:"type"`
	Data struct {
		JobID      string `json:"job_id"`
		InstanceID string `json:"instance_id"`
		Outcome    string `json:"outcome"`
		Reason     string `json:"reason"`
		Final      bool   `json:"final"`
	} `json:"data"`
}

func react(e event) {
	reason := e.Data.Reason
	if reason == "" {
		reason = "-"
	}
	fmt.Println(e.Data.JobID, e.Data.InstanceID, e.Data.Outcome, reason)
}

func main() {
	log.SetFlags(0)
	if len(os.Args) != 3 {
		log.Fatal("usage: react QUEUE KEY")
	}
	url := os.Getenv("AMQP_URL")
	if url == "" {
		url = "amqp://guest:guest@127.0.0.1:5672/%2f"
	}
	for {
		log.Print("connection lost, trying again: ", consume(url, os.Args[1], os.Args[2]))
		time.Sleep(time.Second)
	}
}

// consume returns when the connection is lost.
func consume(url, queue, key string) error {
	connection, err := amqp.Dial(url)
	if err != nil {
		return err
	}
	defer connection.Close()
	channel, err := connection.Channel()
	if err != nil {
		return err
	}
	if _, err := channel.QueueDeclare(queue, true, false, false, false, nil); err != nil {
		return err
	}
	if err := channel.QueueBind(queue, key, "reveille.outcomes", false, nil); err != nil {
		return err
	}
	if err := channel.Qos(20, 0, false); err != nil {
		return err
	}
	deliveries, err := channel.Consume(queue, "", false, false, false, false, nil)
	if err != nil {
		return err
	}
	for delivery := range deliveries {
		var e event
		if err := json.Unmarshal(delivery.Body, &e); err != nil {
			log.Print("no event: ", err)
		} else if strings.HasPrefix(e.Type, "io.reveille.instance.") && e.Data.Final {
			// Others are about batches and lanes.
			react(e)
		}
		// Only now: killed before, it gets the event again.
		if err := delivery.Ack(false); err != nil {
			return err
		}
	}
	return errors.New("closed")
}
