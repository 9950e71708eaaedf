// Lost connections: when the library comes back, and when it does not.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LIMIT, eventually, open_page, set_up, settle, watch } from './harness.mjs';

for (const [name, end] of [
  ['1001 going away', (socket) => socket.close(1001)],
  ['1006, the connection breaks', (socket) => socket.terminate()],
  ['1000 without a word', (socket) => socket.close(1000)],
  ['1009 message too big', (socket) => socket.close(1009)],
  ['1012 restart', (socket) => socket.close(1012)],
]) {
  test(`goes on after a bare close: ${name}`, LIMIT, async (t) => {
    const { server, page, uploader, seen, bytes } = await set_up(t, 50_000);
    uploader.start();
    const first = await server.connection();
    await first.accept();
    await first.take(20_000);
    await seen.until((up) => up.bytes_acked >= 20_000);
    end(first.socket);
    await seen.until((up) => up.state === 'offline');
    assert.equal(uploader.connected, false);
    assert.equal(uploader.can_cancel, true);
    assert.equal(uploader.can_pause, true);
    assert.equal(uploader.bytes_tx, uploader.bytes_acked);
    assert.equal(uploader.state_msg, 'lost connection, trying again in 1 s');
    page.clock.advance(750);
    const second = await server.connection();
    await second.accept({ offset: 20_000 });
    await seen.until((up) => up.state === 'transferring');
    assert.ok(uploader.chunks_tx_now <= 4);
    assert.ok((await second.take(30_000)).equals(bytes.subarray(20_000)));
    await second.all_done();
    await seen.until((up) => up.finished);
    assert.equal(seen.count('onerror'), 0);
  });
}

/** A page on which every connection fails at once. */
function page_without_network() {
  const sockets = [];
  class WebSocket {
    constructor() {
      sockets.push(this);
      setImmediate(() => this.onclose({ code: 1006 }));
    }
    close() {}
  }
  return { ...open_page({ WebSocket }), sockets };
}

test('the wait doubles from half a second to twenty, plus up to half, without end', LIMIT, async () => {
  const page = page_without_network();
  const uploader = page.incoming.Uploader('t', new File(['abc'], 'f'));
  const seen = watch(uploader);
  uploader.start();
  for (const base_ms of [500, 1000, 2000, 4000, 8000, 16_000, ...Array(30).fill(20_000)]) {
    await seen.until((up) => up.state === 'offline');
    const [delay_ms, ...others] = page.clock.delays_ms();
    assert.deepEqual(others, []);
    assert.ok(delay_ms >= base_ms && delay_ms <= base_ms * 1.5, `${delay_ms} for ${base_ms}`);
    page.clock.advance(delay_ms);
    assert.equal(uploader.state, 'connecting');
  }
});

test('clients that lose their server together do not come back together', LIMIT, async () => {
  const page = page_without_network();
  const uploaders = Array.from({ length: 20 }, () => page.incoming.Uploader('t', new File(['abc'], 'f')));
  for (const uploader of uploaders) uploader.start();
  await eventually(() => uploaders.every((up) => up.state === 'offline'));
  assert.equal(new Set(page.clock.delays_ms()).size, 20);
});

test('the wait is short again after progress', LIMIT, async (t) => {
  const { server, page, uploader, seen } = await set_up(t, 50_000);
  uploader.start();
  for (let i = 0; i < 4; i++) {
    (await server.connection()).socket.terminate();
    await seen.until((up) => up.state === 'offline');
    page.clock.advance(page.clock.delays_ms()[0]);
  }
  // A confirmation alone is no progress: a server may accept and fail for ever.
  let connection = await server.connection();
  await connection.accept();
  await seen.until((up) => up.state === 'transferring');
  connection.socket.terminate();
  await seen.until((up) => up.state === 'offline');
  assert.ok(page.clock.delays_ms()[0] >= 8000);
  page.clock.advance(page.clock.delays_ms()[0]);
  connection = await server.connection();
  await connection.accept();
  await connection.take(1024);
  await seen.until((up) => up.bytes_acked > 0);
  connection.socket.terminate();
  await seen.until((up) => up.state === 'offline');
  assert.ok(page.clock.delays_ms()[0] <= 750);
});

for (const [name, fire] of [
  ['online', ({ window }) => window.dispatchEvent(new Event('online'))],
  ['pageshow', ({ window }) => window.dispatchEvent(new Event('pageshow'))],
  ['visible', ({ document }) => document.dispatchEvent(new Event('visibilitychange'))],
]) {
  test(`comes back at once: ${name}`, LIMIT, async () => {
    const page = page_without_network();
    const uploader = page.incoming.Uploader('t', new File(['abc'], 'f'));
    const seen = watch(uploader);
    uploader.start();
    await seen.until((up) => up.state === 'offline');
    page.document.visibilityState = 'hidden';
    page.document.dispatchEvent(new Event('visibilitychange'));
    assert.equal(page.sockets.length, 1);
    page.document.visibilityState = 'visible';
    fire(page);
    assert.equal(page.sockets.length, 2);
    assert.equal(uploader.state, 'connecting');
    fire(page);
    assert.equal(page.sockets.length, 2);
    assert.equal(page.clock.delays_ms().length, 1); // of the new attempt
  });
}

test('start and unpause do not wait either', LIMIT, async () => {
  const page = page_without_network();
  const uploader = page.incoming.Uploader('t', new File(['abc'], 'f'));
  const seen = watch(uploader);
  uploader.start();
  await seen.until((up) => up.state === 'offline');
  uploader.start();
  assert.equal(uploader.state, 'connecting');
  await seen.until((up) => up.state === 'offline');
  uploader.pause('pause');
  assert.equal(uploader.state, 'paused');
  assert.deepEqual(page.clock.delays_ms(), []);
  page.window.dispatchEvent(new Event('online'));
  assert.equal(uploader.state, 'paused');
  uploader.pause('unpause');
  assert.equal(uploader.state, 'connecting');
});

test('an attempt that nobody answers is given up', LIMIT, async () => {
  const sockets = [];
  class WebSocket {
    constructor() {
      sockets.push(this);
    }
    close() {
      this.closed = true;
    }
  }
  const page = open_page({ WebSocket });
  const uploader = page.incoming.Uploader('t', new File(['abc'], 'f'));
  const seen = watch(uploader);
  uploader.start();
  page.clock.advance(19_999);
  assert.equal(uploader.state, 'connecting');
  page.clock.advance(1);
  assert.equal(uploader.state, 'offline');
  assert.equal(sockets[0].closed, true);
  // What the browser says about it later is not about the upload any more.
  page.clock.advance(1000);
  assert.equal(uploader.state, 'connecting');
  sockets[0].onclose({ code: 1006 });
  assert.equal(uploader.state, 'connecting');
  assert.deepEqual(seen.states, ['connecting', 'offline', 'connecting']);
});

test('a server that opens and does not answer is given up', LIMIT, async (t) => {
  const { server, page, uploader, seen } = await set_up(t, 5000);
  uploader.start();
  const connection = await server.connection();
  await connection.expect('MsgUploadReq');
  await seen.until((up) => up.connected);
  page.clock.advance(20_000);
  assert.equal(uploader.state, 'offline');
  assert.equal(await connection.drained(), 1005);
});

test('a slow upload is not given up', LIMIT, async (t) => {
  const { server, page, uploader, seen } = await set_up(t, 5000);
  uploader.start();
  const connection = await server.connection();
  await connection.accept({ ahead: 1 });
  await connection.chunk();
  page.clock.advance(3_600_000);
  connection.ack(1024);
  await seen.until((up) => up.bytes_acked === 1024);
  assert.equal(uploader.state, 'transferring');
});

test('waits on for the web app after a loss in handover', LIMIT, async (t) => {
  const { server, page, uploader, seen } = await set_up(t, 5000);
  uploader.start();
  const first = await server.connection();
  await first.accept();
  await first.take(5000);
  await seen.until((up) => up.state === 'handover');
  first.socket.terminate();
  await seen.until((up) => up.state === 'offline');
  assert.equal(uploader.can_cancel, false);
  assert.equal(uploader.can_pause, false);
  page.clock.advance(750);
  const second = await server.connection();
  await second.accept({ offset: 5000 });
  await seen.until((up) => up.state === 'handover');
  assert.equal(uploader.state_msg, 'processing file on server');
  await second.all_done();
  await seen.until((up) => up.finished);
});

test('a connection that lost against another one does not come back by itself', LIMIT, async (t) => {
  const { server, page, uploader, seen } = await set_up(t, 50_000);
  uploader.start();
  const first = await server.connection();
  await first.accept();
  await first.take(1024);
  first.socket.close(4001, 'taken over');
  await seen.until((up) => up.state === 'taken_over');
  assert.deepEqual(page.clock.delays_ms(), []);
  assert.equal(uploader.cancelled, false);
  assert.equal(uploader.connected, false);
  assert.equal(uploader.can_cancel, false);
  assert.equal(uploader.can_pause, false);
  page.window.dispatchEvent(new Event('online'));
  await settle();
  assert.equal(server.connections(), 1);
  uploader.start();
  const second = await server.connection();
  await second.accept({ offset: 30_000 });
  await second.take(20_000);
  await second.all_done();
  await seen.until((up) => up.finished);
  assert.equal(seen.count('onerror'), 0);
});

test('a server that still believes in the older connection is asked again', LIMIT, async (t) => {
  const { server, page, uploader, seen } = await set_up(t, 5000);
  uploader.start();
  const first = await server.connection();
  await first.expect('MsgUploadReq');
  first.send('MsgError', {
    ErrorCode: 0,
    Msg: 'Another websocket connection already deals with this upload',
  });
  first.socket.close(1000);
  await seen.until((up) => up.state === 'offline');
  assert.equal(uploader.error_code, null);
  page.clock.advance(750);
  const second = await server.connection();
  await second.accept();
  await second.take(5000);
  await second.all_done();
  await seen.until((up) => up.finished);
});
