// Follows one job to its end, or all jobs:  AMQP_URI=amqp://... node follow.js [JOB_ID]
// Publishes a job and follows it:           AMQP_URI=amqp://... node follow.js --publish JOB.json

const { readFileSync } = require('node:fs');
const { randomUUID } = require('node:crypto');
const amqp = require('amqplib');

const ENDS = { completed: 0, failed: 1, rejected: 2, cancelled: 3 };

async function main() {
  const publish = process.argv[2] === '--publish';
  const body = publish ? readFileSync(process.argv[3]) : null;
  const jobId = publish ? JSON.parse(body).id ?? randomUUID() : process.argv[2];

  process.exitCode = 69; // until an event says otherwise
  const connection = await amqp.connect(process.env.AMQP_URI);
  connection.on('error', (error) => console.error(error.message));
  const channel = await connection.createConfirmChannel();

  // Listen before publishing, so that no event is missed.
  const { queue } = await channel.assertQueue('', { exclusive: true });
  await channel.bindQueue(queue, 'spark.results', jobId ? `job.${jobId}.*` : 'job.#');

  const seen = new Set();
  await channel.consume(queue, async (message) => {
    if (message === null) throw new Error('the broker ended the subscription');
    const event = JSON.parse(message.content);
    channel.ack(message);
    if (seen.has(event.id)) return;
    seen.add(event.id);
    const kind = event.type.split('.')[2];
    console.log(event.time, event.subject, kind, event.data.message ?? '');
    if (jobId && kind in ENDS) {
      for (const fault of event.data.faults ?? []) console.log(fault.pointer, fault.message);
      if (event.data.results) console.log(JSON.stringify(event.data.results, null, 2));
      process.exitCode = ENDS[kind];
      await connection.close();
    }
  });

  if (publish) {
    let returned = false;
    channel.on('return', () => { returned = true; });
    const properties = { messageId: jobId, contentType: 'application/json', persistent: true, mandatory: true };
    channel.publish('spark.jobs', 'spark.jobs', body, properties);
    await channel.waitForConfirms(); // the broker has the job for good
    if (returned) throw new Error('no queue took the job: run `spark-runtime topology declare`');
    console.log('published', jobId);
  }
}

main().catch((error) => {
  console.error(error.message);
  process.exit(69);
});
