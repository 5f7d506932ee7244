#!/usr/bin/env python3
"""Reacts to outcomes: react.py QUEUE KEY, as in react.py pager '*.failed'"""

import json
import os
import sys
import time

import pika
import pika.exceptions


def react(job):
    print(job["job_id"], job["instance_id"], job["outcome"], job["reason"] or "-", flush=True)


def on_message(channel, method, properties, body):
    event = json.loads(body)
    # Others are about batches and lanes.
    if event["type"].startswith("io.reveille.instance.") and event["data"]["final"]:
        react(event["data"])
    channel.basic_ack(method.delivery_tag)  # only now: killed before, it gets the event again


def consume(url, queue, key):
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.queue_declare(queue, durable=True)
        channel.queue_bind(queue, "reveille.outcomes", key)
        channel.basic_qos(prefetch_count=20)
        channel.basic_consume(queue, on_message)
        channel.start_consuming()


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: react.py QUEUE KEY")
    queue, key = sys.argv[1:]
    url = os.environ.get("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/%2f")
    while True:
        try:
            consume(url, queue, key)
        except pika.exceptions.AMQPConnectionError as error:
            print(f"connection lost, trying again: {error!r}", file=sys.stderr)
            time.sleep(1)


main()
