"""What the bench measures against: a Celery task that runs /bin/true and is acknowledged when it is over."""

import os
import subprocess

from celery import Celery

app = Celery("bench", broker=os.environ["AMQP_URI"], backend="rpc://")
app.conf.update(task_acks_late=True, worker_prefetch_multiplier=1, broker_connection_retry_on_startup=True)


@app.task(name="bench.job")
def job():
    subprocess.run(["/bin/true"], check=True)
    return None
