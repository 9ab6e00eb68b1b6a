// Imports a trace into Perfetto's own trace processor (the WebAssembly that ui.perfetto.dev runs) and says what it has
// understood. Usage: node perfetto_import.mjs FOLDER TRACE.json, where FOLDER holds engine_bundle.js and the .wasm files of
// a Perfetto UI. scripts/check_trace.sh fetches one and calls this; the checks of every test run are
// tests/support/include/bitnet/testing/trace.hpp.
import fs from 'node:fs';
import path from 'node:path';
import vm from 'node:vm';

const [folder, trace] = process.argv.slice(2);

// The wire format of Perfetto's trace_processor.proto: a stream of TraceProcessorRpc (field 1), as far as it is used here.
const varint = (n) => {
  const out = [];
  for (; n > 127; n = Math.floor(n / 128)) out.push((n % 128) | 128);
  return [...out, n];
};
const number = (field, n) => Buffer.from([...varint(field * 8), ...varint(n)]);
const bytes = (field, b) => Buffer.concat([Buffer.from([...varint(field * 8 + 2), ...varint(b.length)]), b]);
let sequence = 0;
const message = (request, ...more) =>
  new Uint8Array(bytes(1, Buffer.concat([number(1, sequence++), number(2, request), ...more])));
const kAppend = 1, kFinish = 2, kQuery = 3;

function* fields(b) {
  let at = 0;
  const read = () => {
    let n = 0, scale = 1, byte;
    do { byte = b[at++]; n += (byte & 127) * scale; scale *= 128; } while (byte & 128);
    return n;
  };
  while (at < b.length) {
    const key = read(), type = key % 8;
    if (type === 0) { yield [key >> 3, read()]; continue; }
    const n = type === 2 ? read() : type === 1 ? 8 : 4;
    yield [key >> 3, b.subarray(at, at + n)];
    at += n;
  }
}
const get = (b, field) => [...fields(b)].filter(([f]) => f === field).map(([, v]) => v);

// What a web worker has and that bundle uses; no `process`, so that it does not take itself for a program of Node.
const replies = [];
const port = { postMessage: (data) => replies.push(Buffer.from(data)) };
const sandbox = { console: { log() {}, warn() {}, error: console.error }, TextDecoder, TextEncoder, setTimeout, clearTimeout,
  performance, URL, Response, Uint8Array, WorkerGlobalScope: function () {}, importScripts() {},
  location: { href: 'https://ui.invalid/engine_bundle.js' },
  XMLHttpRequest: class {  // of the files beside the bundle, at once
    open(method, url) { this.url = url; }
    send() { this.response = fs.readFileSync(path.join(folder, path.basename(this.url))); }
  } };
sandbox.self = sandbox;
sandbox.globalThis = sandbox;
vm.createContext(sandbox);
vm.runInContext(fs.readFileSync(path.join(folder, 'engine_bundle.js'), 'utf8'), sandbox);
sandbox.onmessage({ data: port });
await new Promise((done) => setTimeout(done, 100));  // what the bundle begins with promises

const until = async (ready) => {
  for (let i = 0; i < 1200; ++i) {
    if (ready()) return;
    await new Promise((done) => setTimeout(done, 50));
  }
  throw new Error('the trace processor does not answer');
};
const call = async (...request) => {
  const before = replies.length;
  port.onmessage({ data: message(...request) });
  await until(() => replies.length > before);
  const all = replies.slice(before).flatMap((r) => get(r, 1));
  for (const r of all) for (const fatal of get(r, 5)) throw new Error(fatal.toString());
  return all;
};
const query = async (sql) => {
  const cells = [];
  for (const r of await call(kQuery, bytes(103, bytes(1, Buffer.from(sql)))))
    for (const result of get(r, 203)) {
      for (const error of get(result, 2)) throw new Error(sql + ': ' + error.toString());
      for (const batch of get(result, 3)) {
        const list = get(batch, 2).flatMap((b) => [...fieldless(b)]);
        const texts = get(batch, 5).flatMap((b) => b.toString().split('\0').slice(0, -1));
        for (const type of get(batch, 1).flatMap((b) => [...fieldless(b)]))
          cells.push(type === 2 ? list.shift() : type === 4 ? texts.shift() : null);
      }
    }
  return cells;
};
function* fieldless(b) {  // packed varints
  for (let at = 0; at < b.length;) {
    let n = 0, scale = 1, byte;
    do { byte = b[at++]; n += (byte & 127) * scale; scale *= 128; } while (byte & 128);
    yield n;
  }
}

const events = JSON.parse(fs.readFileSync(trace, 'utf8')).traceEvents.filter((e) => e.ph === 'X');
const file = fs.readFileSync(trace);
for (let at = 0; at < file.length; at += 1 << 20) await call(kAppend, bytes(101, file.subarray(at, at + (1 << 20))));
await call(kFinish);
const [slices] = await query('select count(*) from slice');
const [nanoseconds] = await query('select sum(dur) from slice');
const [deepest] = await query('select max(depth) from slice');
const [problems] = await query("select coalesce(sum(value), 0) from stats where severity = 'error'");
const [named] = await query("select count(*) from process where name is not null");
console.log(`Perfetto: ${slices} slices of ${events.length} events, ${nanoseconds} ns, nested ${deepest + 1} deep, ` +
  `${named} named process, ${problems} import errors`);
const expected = events.reduce((sum, e) => sum + Math.round(e.dur * 1000), 0);
const good = slices === events.length && Math.abs(nanoseconds - expected) <= events.length && problems === 0 && named > 0;
process.exit(good ? 0 : 1);
