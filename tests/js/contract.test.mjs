// What pages rely on: the documented names, types and orders, each point of it.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { LIMIT, SCRIPT, eventually, make_file, open_page, set_up, watch } from './harness.mjs';

const UPLOAD_PATH = '/incoming/0.1/frontend/upload_ws';

/** Where a page that never gets an answer tries to connect to. */
function url_of({ hostname, ...location }) {
  const urls = [];
  class WebSocket {
    constructor(url) {
      urls.push(url);
    }
  }
  const { incoming } = open_page({ WebSocket, ...location });
  if (hostname) incoming.set_server_hostname(hostname);
  incoming.Uploader('t', make_file(1).file).start();
  return urls[0];
}

test('the script defines one global', () => {
  assert.deepEqual(open_page().globals_new, ['incoming']);
});

test('the library exposes two functions', () => {
  assert.deepEqual(Object.keys(open_page().incoming).sort(), ['Uploader', 'set_server_hostname']);
});

test('the server is the page host unless named', () => {
  assert.equal(url_of({ host: 'app.example:8080' }), `ws://app.example:8080${UPLOAD_PATH}`);
  assert.equal(url_of({ hostname: 'up.example:4000' }), `ws://up.example:4000${UPLOAD_PATH}`);
});

test('ws only when the page is http, else wss', () => {
  assert.equal(url_of({ protocol: 'https:', host: 'a' }), `wss://a${UPLOAD_PATH}`);
  assert.equal(url_of({ protocol: 'file:', hostname: 'a:1' }), `wss://a:1${UPLOAD_PATH}`);
});

test('a whole origin is accepted as hostname and brings its scheme', () => {
  assert.equal(url_of({ hostname: 'https://up.example' }), `wss://up.example${UPLOAD_PATH}`);
  assert.equal(url_of({ protocol: 'https:', hostname: 'http://up:1/' }), `ws://up:1${UPLOAD_PATH}`);
});

test('Uploader works with and without new', () => {
  const { incoming } = open_page();
  const { file } = make_file(3);
  const one = incoming.Uploader('t', file);
  const other = new incoming.Uploader('t', file);
  assert.deepEqual(Object.keys(one), Object.keys(other));
  assert.ok(one instanceof incoming.Uploader && other instanceof incoming.Uploader);
});

test('all properties exist from construction, with their types', () => {
  const { file } = make_file(10, 'naïve 文件.bin');
  const uploader = open_page().incoming.Uploader('t', file);
  const { start, pause, cancel, ...properties } = uploader;
  assert.deepEqual(properties, {
    filename: 'naïve 文件.bin',
    bytes_total: 10,
    bytes_tx: 0,
    bytes_acked: 0,
    bytes_ahead: 0,
    frac_complete: 0,
    chunks_tx_now: 0,
    chunks_acked_now: 0,
    chunks_ahead: 0,
    rate: 0,
    eta: null,
    state: 'new',
    state_msg: 'not yet started',
    cancel_msg: null,
    error_code: null,
    error_msg: null,
    connected: false,
    finished: false,
    paused: false,
    can_pause: false,
    cancelling: false,
    cancelled: false,
    can_cancel: true,
    onprogress: null,
    onfinished: null,
    oncancelled: null,
    onerror: null,
  });
  for (const method of [start, pause, cancel]) assert.equal(typeof method, 'function');
});

test('the types name every property', () => {
  const types = readFileSync(new URL('../../js/incoming.d.ts', import.meta.url), 'utf8');
  const uploader = open_page().incoming.Uploader('t', make_file(1).file);
  for (const name of Object.keys(uploader)) assert.match(types, new RegExp(`^  (readonly )?${name}[:(]`, 'm'));
});

test('the module exports what the script defines', async () => {
  const module = await import('../../js/index.mjs');
  assert.equal(module.default, globalThis.incoming);
  assert.equal(module.Uploader, globalThis.incoming.Uploader);
  assert.equal(module.set_server_hostname, globalThis.incoming.set_server_hostname);
});

test('the script stays small', () => {
  assert.ok(SCRIPT.length <= 40_000, `${SCRIPT.length} characters`);
  const gzip_bytes = gzipSync(SCRIPT, { level: 9 }).length;
  assert.ok(gzip_bytes <= 10_000, `${gzip_bytes} bytes gzipped`);
});

test('the script raises no dialogs and needs no evaluation', () => {
  assert.doesNotMatch(SCRIPT, /\b(alert|confirm|prompt|eval|Function)\s*\(['"`]/);
});

test('start and cancel return the uploader, pause nothing', () => {
  class WebSocket {
    close() {}
  }
  const { incoming } = open_page({ WebSocket });
  const uploader = incoming.Uploader('t', make_file(1).file);
  assert.equal(uploader.start(), uploader);
  assert.equal(uploader.pause('toggle'), undefined);
  assert.equal(uploader.cancel('r'), uploader);
});

test('pause takes three words and no others', () => {
  const uploader = open_page().incoming.Uploader('t', make_file(1).file);
  assert.throws(() => uploader.pause(true), TypeError);
});

test('onprogress comes with every change, the others after it', LIMIT, async (t) => {
  const { server, uploader, seen } = await set_up(t, 3000);
  uploader.start();
  const connection = await server.connection();
  await connection.accept({ chunk_kb: 1, ahead: 1 });
  await connection.take(3000);
  await connection.all_done();
  await seen.until((up) => up.finished && !up.connected);
  // connecting, open, confirmed, 3 sent, 3 acknowledged, done, closed
  assert.equal(seen.count('onprogress'), 11);
  assert.deepEqual(seen.calls.slice(-3), ['onprogress', 'onfinished', 'onprogress']);
  assert.deepEqual(seen.states, ['connecting', 'transferring', 'handover', 'finished']);
});

test('counters add up in every callback', LIMIT, async (t) => {
  const { server, uploader, seen } = await set_up(t, 10_000);
  const sums = [];
  const watched = uploader.onprogress;
  uploader.onprogress = (up) => {
    sums.push(up.bytes_ahead === up.bytes_tx - up.bytes_acked);
    sums.push(up.chunks_ahead === up.chunks_tx_now - up.chunks_acked_now);
    sums.push(up.frac_complete === up.bytes_acked / up.bytes_total);
    watched(up);
  };
  uploader.start();
  const connection = await server.connection();
  await connection.accept();
  await connection.take(10_000);
  await seen.until((up) => up.state === 'handover');
  assert.ok(sums.length > 60 && sums.every(Boolean));
  assert.equal(uploader.chunks_tx_now, 10);
  assert.equal(uploader.chunks_acked_now, 10);
  assert.equal(uploader.bytes_tx, 10_000);
});

test('flags of the states a page goes through', LIMIT, async (t) => {
  const { server, uploader, seen } = await set_up(t, 3000);
  const flags = () => [uploader.can_cancel, uploader.can_pause, uploader.paused, uploader.finished];
  assert.deepEqual(flags(), [true, false, false, false]);
  uploader.start();
  assert.deepEqual(flags(), [true, false, false, false]);
  const connection = await server.connection();
  await connection.accept();
  await seen.until((up) => up.state === 'transferring');
  assert.deepEqual(flags(), [true, true, false, false]);
  uploader.pause('pause');
  assert.deepEqual(flags(), [false, true, true, false]);
  uploader.pause('unpause');
  assert.deepEqual(flags(), [true, true, false, false]);
  const second = await server.connection();
  await second.accept({ offset: 1024 });
  await second.take(3000 - 1024);
  await seen.until((up) => up.state === 'handover');
  assert.deepEqual(flags(), [false, false, false, false]);
  uploader.pause('pause');
  uploader.cancel('too late');
  assert.deepEqual(flags(), [false, false, false, false]);
  assert.equal(uploader.state, 'handover');
  await second.all_done();
  await seen.until((up) => up.finished);
  assert.deepEqual(flags(), [false, false, false, true]);
});

test("a server's message loses its markup", LIMIT, async (t) => {
  const { server, uploader, seen } = await set_up(t, 3000);
  uploader.start();
  const connection = await server.connection();
  await connection.expect('MsgUploadReq');
  connection.send('MsgError', { ErrorCode: 0, Msg: "can't <img src=x onerror=alert(1)> & more" });
  await seen.until((up) => up.cancelled);
  for (const text of [uploader.error_msg, uploader.state_msg, uploader.cancel_msg]) {
    assert.doesNotMatch(text, /[<>&]/);
    assert.match(text, /can't/);
  }
});

test('messages do not name the file', LIMIT, async (t) => {
  const { server, page } = await set_up(t, 0);
  const uploader = page.incoming.Uploader('t', new File(['abc'], '<b>evil</b>.bin'));
  const seen = watch(uploader);
  const texts = [];
  const watched = uploader.onprogress;
  uploader.onprogress = (up) => {
    texts.push(up.state_msg, String(up.error_msg), String(up.cancel_msg));
    watched(up);
  };
  uploader.start();
  const connection = await server.connection();
  assert.equal((await connection.accept()).Name, '<b>evil</b>.bin');
  await connection.take(3);
  await connection.all_done();
  await seen.until((up) => up.finished);
  assert.ok(texts.every((text) => !text.includes('evil')));
});

test("a callback that throws is the page's error and does not stop the upload", LIMIT, async (t) => {
  const errors = [];
  const { server, page, bytes, file } = await set_up(t, 3000);
  const uploader = page.incoming.Uploader('t', file);
  const finished = new Promise((resolve) => (uploader.onfinished = resolve));
  let thrown = 0;
  uploader.onprogress = () => {
    thrown++;
    throw new Error("the page's mistake");
  };
  const listeners = process.listeners('uncaughtException');
  process.removeAllListeners('uncaughtException');
  process.on('uncaughtException', (error) => errors.push(error.message));
  t.after(() => {
    process.removeAllListeners('uncaughtException');
    for (const listener of listeners) process.on('uncaughtException', listener);
  });
  uploader.start();
  const connection = await server.connection();
  await connection.accept();
  assert.deepEqual(await connection.take(3000), bytes);
  await connection.all_done();
  await finished;
  // The last callback is that of the closed connection.
  await eventually(() => !uploader.connected && errors.length === thrown);
  assert.ok(thrown > 5 && errors.every((message) => message === "the page's mistake"));
});
