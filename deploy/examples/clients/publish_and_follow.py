"""Publishes a job and follows it to its end: AMQP_URI=amqp://... python publish_and_follow.py JOB.json"""

import json
import os
import sys
import uuid

import pika

ENDS = {"completed": 0, "failed": 1, "rejected": 2, "cancelled": 3}

with open(sys.argv[1], "rb") as file:
    body = file.read()
job_id = json.loads(body).get("id") or str(uuid.uuid4())

connection = pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URI"]))
channel = connection.channel()

# Listen before publishing, so that no event is missed.
queue = channel.queue_declare("", exclusive=True).method.queue
channel.queue_bind(queue, "spark.results", f"job.{job_id}.*")

# Returns when the broker has the job for good; raises when no queue took it.
channel.confirm_delivery()
properties = pika.BasicProperties(message_id=job_id, content_type="application/json", delivery_mode=2)
channel.basic_publish("spark.jobs", "spark.jobs", body, properties, mandatory=True)
print("published", job_id)

seen = set()
for delivery, _, text in channel.consume(queue):
    event = json.loads(text)
    channel.basic_ack(delivery.delivery_tag)
    if event["id"] in seen:
        continue
    seen.add(event["id"])
    kind = event["type"].split(".")[2]
    data = event["data"]
    print(event["time"], kind, data.get("message", ""))
    if kind in ENDS:
        for fault in data.get("faults", []):
            print(fault["pointer"], fault["message"])
        if "results" in data:
            print(json.dumps(data["results"], indent=2))
        connection.close()
        sys.exit(ENDS[kind])
