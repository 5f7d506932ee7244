"""Publishes a job whose message_id is not UTF-8, which RabbitMQ passes on and few clients can read or write.

odd_message.py URL EXCHANGE ROUTING_KEY BODY
"""

import sys

import pika

url, exchange, key, body = sys.argv[1:]
connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()
channel.confirm_delivery()
properties = pika.BasicProperties(message_id=b"odd\xff\xfe", delivery_mode=2)
channel.basic_publish(exchange, key, body.encode(), properties, mandatory=True)
connection.close()
