"""Publishes messages that RabbitMQ passes on and few clients can read or write.

odd_message.py URL EXCHANGE ROUTING_KEY [KIND BODY]...

A kind is a property whose text is not UTF-8 (message_id, reply_to, …), `name` (a header's name is not UTF-8), `death` (that,
and an `x-death` as RabbitMQ never writes it), `values:N`
(headers with N values), `tables:N` or `arrays:N` (headers nested N deep, or as deep as a frame holds where N is `most`),
`frame:N` (properties that take a frame of N bytes), or `plain`. Each message has its kind as its id, unless the id is odd.
"""

import sys

import pika

FRAME_MAX = 131072
NOT_UTF8 = b"odd\xff\xfe"


class Encoded(pika.BasicProperties):
    """Properties with headers that are encoded already."""

    headers_encoded = b""

    def encode(self):
        if not self.headers_encoded:
            return super().encode()
        # The flags come first, and then what stands before the headers, which is nothing here.
        flags, *rest = super().encode()
        flags = int.from_bytes(flags, "big") | 1 << 13
        table = len(self.headers_encoded).to_bytes(4, "big") + self.headers_encoded
        return [flags.to_bytes(2, "big"), table, *rest]


def nested(kind, depth):
    level = 7 if kind == "tables" else 5
    parts = []
    for inside in range(depth - 1, -1, -1):
        size = inside * level + 1
        table = b"F" + (size + 2).to_bytes(4, "big") + b"\x01n"
        parts.append(table if kind == "tables" else b"A" + size.to_bytes(4, "big"))
    return b"\x01n" + b"".join(parts) + b"V"


def properties(kind):
    what, _, number = kind.partition(":")
    odd = Encoded(message_id=kind, delivery_mode=2)
    # Around the payload, before the properties, and those beside the headers' inside.
    around = 8 + 14 + 4 + 1 + 1 + len(kind)
    if what in ("tables", "arrays"):
        level = 7 if what == "tables" else 5
        depth = (FRAME_MAX - around - 3) // level if number == "most" else int(number)
        odd.headers_encoded = nested(what, depth)
    elif what == "values":
        odd.headers_encoded = b"".join(b"\x04%04xV" % value for value in range(int(number)))
    elif what == "frame":
        size = int(number) - around - 7
        odd.headers_encoded = b"\x01nS" + size.to_bytes(4, "big") + b"v" * size
    elif what == "name":
        odd.headers_encoded = b"\x05" + NOT_UTF8 + b"V"
    elif what == "death":
        odd.headers_encoded = b"\x05" + NOT_UTF8 + b"V\x07x-deathA\0\0\0\x02b\x01"
    elif what != "plain":
        setattr(odd, what, NOT_UTF8)
    return odd


url, exchange, key, *messages = sys.argv[1:]
connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()
channel.confirm_delivery()
for kind, body in zip(messages[::2], messages[1::2]):
    channel.basic_publish(exchange, key, body.encode(), properties(kind), mandatory=True)
connection.close()
