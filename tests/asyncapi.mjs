// Holds the AsyncAPI document against the official schema of its version, and the message schemas inside it against
// messages whose verdict is known. Reads one JSON object from the standard input:
//
//   {"asyncapi": {...}, "messages": [{"payload": "job" | "event" | "command" | "answer", "what": "...", "document": ..., "valid": true}]}
//
// and prints what does not agree; exits 0 when all does. The modules come from $SPARK_RUNTIME_TEST_NODE_MODULES.

import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';

const require = createRequire(join(process.env.SPARK_RUNTIME_TEST_NODE_MODULES ?? '.', 'modules.js'));
const Ajv = require('ajv').default;
const Ajv2020 = require('ajv/dist/2020').default;
const addFormats = require('ajv-formats').default;
const specifications = require('@asyncapi/specs');

const complaints = [];
const { asyncapi, messages } = JSON.parse(readFileSync(0, 'utf8'));

const official = new Ajv({ strict: false, validateFormats: false, unicodeRegExp: false, allErrors: true });
const isAsyncapi = official.compile(specifications.schemasWithoutId[asyncapi.asyncapi]);
if (!isAsyncapi(asyncapi)) {
  for (const error of isAsyncapi.errors.slice(0, 20)) {
    complaints.push(`the AsyncAPI document: ${error.instancePath} ${error.message}`);
  }
}

// A validator that takes everything would not be noticed otherwise.
const spoilers = {
  'an unknown key': (document) => { document.surplus = 1; },
  'no title': (document) => { delete document.info.title; },
  'a wrong action': (document) => { document.operations.publishJob.action = 'publish'; },
  'a reply to nowhere': (document) => { document.operations.sendCommand.reply.address = {}; },
  'a wrong kind of exchange': (document) => { document.channels.jobs.bindings.amqp.exchange.type = 'quorum'; },
  'a wrong security scheme': (document) => { document.components.securitySchemes.userPassword.type = 'none'; },
};
for (const [what, spoil] of Object.entries(spoilers)) {
  const spoilt = structuredClone(asyncapi);
  spoil(spoilt);
  if (isAsyncapi(spoilt)) {
    complaints.push(`the official schema takes a document with ${what}`);
  }
}

// The schemas refer to their parts from the root of the document, so the validator gets them at their place below a
// root. Strict about unknown keywords; not about types that stand outside an `if`.
const ajv = new Ajv2020({ strict: true, strictTypes: false, strictRequired: false });
addFormats(ajv);
ajv.addVocabulary(['components']);
ajv.addSchema({ components: asyncapi.components }, 'urn:document:asyncapi');
const judges = new Map();
for (const payload of ['job', 'event', 'command', 'answer']) {
  judges.set(payload, ajv.compile({ $ref: `urn:document:asyncapi#/components/schemas/${payload}/schema` }));
}
let agreed = 0;
for (const { payload, what, document, valid } of messages) {
  const judge = judges.get(payload);
  if (judge(document) === valid) {
    agreed += 1;
  } else {
    complaints.push(`${payload}: ${what}: ${valid ? ajv.errorsText(judge.errors) : 'was to be refused'}`);
  }
}

for (const complaint of complaints.slice(0, 50)) {
  console.log(complaint);
}
console.log(`${agreed} verdicts agree, ${complaints.length} complaints`);
process.exitCode = complaints.length === 0 ? 0 : 1;
