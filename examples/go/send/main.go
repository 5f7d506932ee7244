// Sends a job: send LANE INSTANCE
package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 3 {
		log.Fatal("usage: send LANE INSTANCE")
	}
	id, err := send(os.Args[1], os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(id)
}

// send returns the job's id once RabbitMQ has confirmed the job.
func send(lane, instance string) (string, error) {
	url := os.Getenv("AMQP_URL")
	if url == "" {
		url = "amqp://guest:guest@127.0.0.1:5672/%2f"
	}
	connection, err := amqp.Dial(url)
	if err != nil {
		return "", err
	}
	defer connection.Close()
	channel, err := connection.Channel()
	if err != nil {
		return "", err
	}
	if err := channel.Confirm(false); err != nil {
		return "", err
	}
	body, err := json.Marshal(map[string]any{"instance_id": instance, "labels": map[string]string{"from": "send.go"}})
	if err != nil {
		return "", err
	}
	// The job's id: send it again under the same one where it is unclear whether it arrived.
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return "", err
	}
	job := amqp.Publishing{
		MessageId:    fmt.Sprintf("%x", id),
		ContentType:  "application/json",
		DeliveryMode: amqp.Persistent,
		Body:         body,
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	confirm, err := channel.PublishWithDeferredConfirmWithContext(ctx, "reveille.jobs", lane, true, false, job)
	if err != nil {
		return "", err
	}
	if !confirm.Wait() {
		return "", errors.New("RabbitMQ has not taken the job")
	}
	return job.MessageId, nil
}
