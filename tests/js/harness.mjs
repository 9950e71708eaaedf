// Loads incoming.js as a page would, with a clock that only the test moves, and plays the server.

import { readFileSync } from 'node:fs';
import { once } from 'node:events';
import vm from 'node:vm';
import { WebSocket, WebSocketServer } from 'ws';

/** Of each test. It ends only what hangs, also on a busy machine. */
export const LIMIT = { timeout: 120_000 };

export const SCRIPT_PATH = new URL('../../js/incoming.js', import.meta.url);
export const SCRIPT = readFileSync(SCRIPT_PATH, 'utf8');

/** Timers that run when the test says so. A timer without delay is not held back. */
class Clock {
  constructor() {
    this.now_ms = 0;
    this.timers = new Map();
    this.last_id = 0;
  }

  set(run, delay_ms) {
    if (!delay_ms) return setImmediate(run);
    this.timers.set(++this.last_id, { run, due_ms: this.now_ms + delay_ms, delay_ms });
    return this.last_id;
  }

  clear(id) {
    if (typeof id === 'number') this.timers.delete(id);
  }

  /** The delays that are being waited for, shortest first. */
  delays_ms() {
    return [...this.timers.values()].map((timer) => timer.delay_ms).sort((a, b) => a - b);
  }

  advance(ms) {
    this.now_ms += ms;
    for (const [id, timer] of [...this.timers]) {
      if (timer.due_ms > this.now_ms || !this.timers.delete(id)) continue;
      timer.run();
    }
  }
}

/** A page: its globals, its clock, and the library in it. */
export function open_page({ protocol = 'http:', host = 'localhost', ...globals } = {}) {
  const clock = new Clock();
  const window = new EventTarget();
  const document = Object.assign(new EventTarget(), { visibilityState: 'visible' });
  const sandbox = vm.createContext({
    // The page's memory and the test's are the same realm, as they are in a browser.
    ...{ Uint8Array, ArrayBuffer, Object, Error, TypeError, Promise },
    WebSocket,
    location: { protocol, host },
    document,
    performance: { now: () => clock.now_ms },
    setTimeout: (run, delay_ms) => clock.set(run, delay_ms),
    clearTimeout: (id) => clock.clear(id),
    addEventListener: (...args) => window.addEventListener(...args),
    ...globals,
  });
  const globals_before = new Set(Object.getOwnPropertyNames(sandbox));
  vm.runInContext(SCRIPT, sandbox, { filename: 'incoming.js' });
  const globals_new = Object.getOwnPropertyNames(sandbox).filter((name) => !globals_before.has(name));
  return { incoming: sandbox.incoming, clock, window, document, globals_new };
}

/** What one connection says, in the order in which it says it. */
class Conversation {
  constructor(socket) {
    this.socket = socket;
    this.events = [];
    this.waiting = null;
    socket.on('message', (data, is_binary) => this.push(is_binary ? { chunk: data } : JSON.parse(data)));
    socket.on('close', (code) => this.push({ closed: code }));
  }

  push(event) {
    this.events.push(event);
    if (this.waiting) this.waiting();
  }

  async next() {
    while (this.events.length === 0) await new Promise((resolve) => (this.waiting = resolve));
    return this.events.shift();
  }

  /** The data of the next message, which has to be of this type. */
  async expect(type) {
    const event = await this.next();
    if (event.MsgType !== type) throw new Error(`expected ${type}, got ${JSON.stringify(event)}`);
    return event.MsgData;
  }

  async chunk() {
    const event = await this.next();
    if (!event.chunk) throw new Error(`expected a chunk, got ${JSON.stringify(event)}`);
    return event.chunk;
  }

  /** The code of the close, which has to come next. */
  async closed() {
    const event = await this.next();
    if (event.closed === undefined) throw new Error(`expected the close, got ${JSON.stringify(event)}`);
    return event.closed;
  }

  /** The close code, whatever comes before it. */
  async drained() {
    for (;;) {
      const event = await this.next();
      if (event.closed !== undefined) return event.closed;
    }
  }

  send(type, data) {
    this.socket.send(JSON.stringify({ MsgType: type, MsgData: data }));
  }

  ack(length) {
    this.send('MsgChunkAck', { ChunkSize: length });
  }

  /** Takes the request and answers it. */
  async accept({ offset = 0, chunk_kb = 1, ahead = 4 } = {}) {
    const request = await this.expect('MsgUploadReq');
    this.send('MsgUploadConf', { ChunkSizeKB: chunk_kb, FilePos: offset, SendAhead: ahead });
    const ack = await this.expect('MsgAck');
    if (ack.Ack !== true) throw new Error('not acked');
    return request;
  }

  /** Takes and acknowledges chunks until it has so many bytes. */
  async take(length) {
    const chunks = [];
    for (let taken = 0; taken < length; ) {
      const chunk = await this.chunk();
      this.ack(chunk.length);
      chunks.push(chunk);
      taken += chunk.length;
    }
    return Buffer.concat(chunks);
  }

  /** The end of an upload that arrived. */
  async all_done() {
    this.send('MsgAllDone', { Success: true });
    this.socket.close(1000);
    await this.drained();
  }
}

/** Listens on loopback and hands out conversations as they come in. */
export async function start_server(test) {
  const server = new WebSocketServer({ host: '127.0.0.1', port: 0, perMessageDeflate: false });
  await once(server, 'listening');
  const conversations = [];
  const waiting = [];
  let taken = 0;
  server.on('connection', (socket, request) => {
    conversations.push(Object.assign(new Conversation(socket), { path: request.url }));
    for (const wake of waiting.splice(0)) wake();
  });
  test.after(() => {
    for (const socket of server.clients) socket.terminate();
    server.close();
  });
  return {
    host: `127.0.0.1:${server.address().port}`,
    connections: () => conversations.length,
    stop: () => new Promise((resolve) => server.close(resolve)),
    async connection() {
      while (conversations.length === taken) await new Promise((resolve) => waiting.push(resolve));
      return conversations[taken++];
    },
  };
}

/** Records every callback, and waits for what a page would see. */
export function watch(uploader) {
  const calls = []; // the callbacks' names in order
  const states = []; // without repetitions
  const waiting = new Set();
  for (const name of ['onprogress', 'onfinished', 'oncancelled', 'onerror']) {
    uploader[name] = function (...args) {
      if (args.length !== 1 || args[0] !== uploader) throw new Error(`${name} got ${args}`);
      if (Number.isNaN(uploader.frac_complete)) throw new Error('frac_complete is NaN');
      calls.push(name);
      if (states.at(-1) !== uploader.state) states.push(uploader.state);
      for (const check of waiting) check();
    };
  }
  return {
    calls,
    states,
    count: (name) => calls.filter((call) => call === name).length,
    /** Resolves at the first callback after which this is true, or at once. */
    until(predicate) {
      return new Promise((resolve) => {
        const check = () => {
          if (!predicate(uploader)) return;
          waiting.delete(check);
          resolve();
        };
        waiting.add(check);
        check();
      });
    },
  };
}

/** A file whose bytes differ from place to place. */
export function make_file(length, name = 'file.bin') {
  const bytes = Buffer.alloc(length);
  for (let i = 0; i < length; i++) bytes[i] = (i * 31 + (i >> 8) * 7) & 0xff;
  const file = new File([bytes], name);
  return { bytes, file };
}

/** A page, a server that it knows, and an uploader of a file of that length. */
export async function set_up(test, length, globals = {}) {
  const server = await start_server(test);
  const page = open_page({ host: server.host, ...globals });
  const { bytes, file } = make_file(length);
  const uploader = page.incoming.Uploader('ticket-1', file);
  return { server, page, bytes, file, uploader, seen: watch(uploader) };
}

/** Waits for what has to come and then stays; the test's limit ends the wait for what does not. */
export async function eventually(condition) {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 5));
}

/**
 * Gives what should not come the time to come: turns of the event loop, in each of which page and
 * server handle what is there. For what has to come there is `eventually`.
 */
export async function settle() {
  for (let turn = 0; turn < 10; turn++) await new Promise((resolve) => setTimeout(resolve, 3));
}
