"""Publishes a job with properties that no client library writes: AMQP_URI=... python hostile_publish.py KIND < JOB"""

import os
import struct
import sys

import pika


def short(text):
    return bytes([len(text)]) + text


def long(kind, content):
    return kind + struct.pack(">I", len(content)) + content


def deep(levels):
    inner = b""
    for _ in range(levels):
        inner = short(b"k") + long(b"F", inner)
    return inner


HEADERS, CORRELATION_ID, EXPIRATION = 0x2000, 0x0400, 0x0100
LARGE = long(b"", short(b"k") + long(b"S", b"v" * 130900))
KINDS = {
    # Sixteen raw bytes, as of a UUID, where text belongs.
    "no-text": (HEADERS | CORRELATION_ID, long(b"", short(b"\xff") + b"V") + short(b"\xff\x00\xfe\x80" * 4)),
    "deep": (HEADERS, long(b"", deep(18000))),
    "large": (HEADERS, LARGE),
    "large-and-expired": (HEADERS | EXPIRATION, LARGE + short(b"1")),
}


class Raw(pika.BasicProperties):
    def __init__(self, flags, encoded):
        super().__init__()
        self.parts = [struct.pack(">H", flags), encoded]

    def encode(self):
        return self.parts


connection = pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URI"]))
channel = connection.channel()
channel.confirm_delivery()
channel.basic_publish("spark.jobs", "spark.jobs", sys.stdin.buffer.read(), Raw(*KINDS[sys.argv[1]]), mandatory=True)
connection.close()
