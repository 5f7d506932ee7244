#!/usr/bin/env python3
"""Sends a job: send.py LANE INSTANCE"""

import json
import os
import sys
import uuid

import pika

if len(sys.argv) != 3:
    sys.exit("usage: send.py LANE INSTANCE")
lane, instance = sys.argv[1:]
url = os.environ.get("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/%2f")
job = {"instance_id": instance, "labels": {"from": "send.py"}}

with pika.BlockingConnection(pika.URLParameters(url)) as connection:
    channel = connection.channel()
    channel.confirm_delivery()  # basic_publish waits for the confirm, and raises if none comes
    properties = pika.BasicProperties(
        message_id=str(uuid.uuid4()),  # the job's id: send it again under the same one where it is unclear whether it arrived
        content_type="application/json",
        delivery_mode=pika.DeliveryMode.Persistent,
    )
    channel.basic_publish("reveille.jobs", lane, json.dumps(job), properties, mandatory=True)
print(properties.message_id)
