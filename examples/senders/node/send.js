// Enqueue from Node.js: `npm install`, then `node send.js allocation.allocate '{"orderid": "o1", "sku": "LAMP", "qty": 3}'`.
// Prints the result as JSON, or an error on standard error with exit status 1.
const celery = require("celery-node");

const broker = process.env.BROKER_URL || "redis://127.0.0.1:6390/0";
const results = process.env.RESULTS_URL || "redis://127.0.0.1:6390/1";
const [task, fields] = process.argv.slice(2);

async function main() {
  const client = celery.createClient(broker, results, "allocation.commands");
  if (broker.startsWith("amqp")) {
    // The backend owns the queue: check that it exists instead of declaring it differently.
    const channel = await client.broker.channel;
    channel.assertQueue = (name) => channel.checkQueue(name);
  }
  try {
    const result = client.createTask(task).applyAsync([], JSON.parse(fields));
    console.log(JSON.stringify(await result.get(30000)));
  } finally {
    await client.disconnect();
  }
}

main().catch((refusal) => {
  console.error(refusal);
  process.exit(1);
});
