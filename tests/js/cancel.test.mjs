// Cancellations from both sides, and errors: the ends that are not a success.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LIMIT, eventually, open_page, set_up, settle, watch } from './harness.mjs';

const UNHEARD = "upload is cancelled, but the backend doesn't know it yet";

/** The flags that no end may leave behind. */
function assert_over(uploader) {
  assert.equal(uploader.cancelled, true);
  for (const name of ['cancelling', 'can_cancel', 'can_pause', 'paused', 'finished']) {
    assert.equal(uploader[name], false, name);
  }
  assert.equal(uploader.bytes_ahead, 0);
}

test('cancel while transferring waits for the server to confirm', LIMIT, async (t) => {
  const { server, uploader, seen } = await set_up(t, 100_000);
  uploader.start();
  const connection = await server.connection();
  await connection.accept({ ahead: 2 });
  await connection.chunk();
  await connection.chunk();
  uploader.cancel('changed my mind');
  assert.equal(uploader.cancelling, true);
  assert.equal(uploader.cancelled, false);
  assert.equal(uploader.can_cancel, false);
  assert.equal(uploader.cancel_msg, 'changed my mind');
  assert.equal(uploader.state_msg, 'cancelling: changed my mind');
  assert.deepEqual(await connection.expect('MsgCancel'), { Reason: 'changed my mind' });
  // Acknowledgements that were under way still count.
  connection.ack(1024);
  connection.ack(1024);
  await seen.until((up) => up.bytes_acked === 2048);
  connection.send('MsgCancelAck', { Ack: true });
  await seen.until((up) => up.cancelled);
  assert.equal(uploader.state, 'cancelled');
  assert.equal(uploader.state_msg, 'cancelled: changed my mind');
  assert.equal(uploader.error_code, null);
  connection.socket.close(1000);
  await seen.until((up) => !up.connected);
  assert_over(uploader);
  assert.equal(seen.count('oncancelled'), 1);
  assert.equal(seen.count('onerror'), 0);
  assert.equal(connection.events.filter((event) => event.chunk).length, 0);
});

test('late acknowledgements after the end change nothing', LIMIT, async (t) => {
  const { server, uploader, seen } = await set_up(t, 100_000);
  uploader.start();
  const connection = await server.connection();
  await connection.accept({ ahead: 2 });
  await connection.chunk();
  uploader.cancel('r');
  connection.send('MsgCancelAck', { Ack: true });
  connection.ack(1024);
  connection.send('MsgAllDone', { Success: true });
  connection.send('MsgError', { ErrorCode: 7, Msg: 'late' });
  await seen.until((up) => up.cancelled && !up.connected);
  assert.equal(uploader.error_code, null);
  assert.equal(uploader.bytes_acked, 0);
  assert.equal(seen.count('oncancelled'), 1);
});

test('cancel between open and confirmation waits until the server understands it', LIMIT, async (t) => {
  const { server, uploader, seen } = await set_up(t, 5000);
  uploader.start();
  const connection = await server.connection();
  await connection.expect('MsgUploadReq');
  await seen.until((up) => up.connected);
  uploader.cancel('early');
  assert.equal(uploader.state, 'cancelling');
  await settle();
  assert.equal(connection.events.length, 0);
  connection.send('MsgUploadConf', { ChunkSizeKB: 1, FilePos: 0, SendAhead: 4 });
  await connection.expect('MsgAck');
  assert.deepEqual(await connection.expect('MsgCancel'), { Reason: 'early' });
  connection.send('MsgCancelAck', { Ack: true });
  await seen.until((up) => up.cancelled);
  assert_over(uploader);
});

test('cancel before start is immediate, and the server is told in the background', LIMIT, async (t) => {
  const { server, uploader, seen } = await set_up(t, 5000);
  uploader.cancel('never mind');
  assert_over(uploader);
  assert.equal(uploader.error_code, 501);
  assert.equal(uploader.error_msg, UNHEARD);
  assert.deepEqual(seen.calls, ['onprogress', 'onerror', 'oncancelled']);
  const connection = await server.connection();
  assert.equal((await connection.accept()).Id, 'ticket-1');
  assert.deepEqual(await connection.expect('MsgCancel'), { Reason: 'never mind' });
  connection.send('MsgCancelAck', { Ack: true });
  await connection.drained();
  await settle();
  assert.equal(server.connections(), 1);
});

test('cancel while connecting is immediate', LIMIT, async (t) => {
  const { server, uploader } = await set_up(t, 5000);
  uploader.start();
  uploader.cancel('r');
  assert_over(uploader);
  assert.equal(uploader.error_code, 501);
  let connection = await server.connection();
  let event = await connection.next();
  if (event.MsgType !== 'MsgUploadReq') {
    connection = await server.connection();
    event = await connection.next();
  }
  assert.equal(event.MsgType, 'MsgUploadReq');
});

test('cancel while offline tries to tell the server, a bounded number of times', LIMIT, async (t) => {
  let attempts = 0;
  class DeadSocket {
    constructor() {
      attempts++;
      setImmediate(() => this.onclose({ code: 1006 }));
    }
    close() {}
  }
  const page = open_page({ WebSocket: DeadSocket });
  const uploader = page.incoming.Uploader('t', new File(['abc'], 'f'));
  const seen = watch(uploader);
  uploader.start();
  await seen.until((up) => up.state === 'offline');
  assert.equal(uploader.can_cancel, true);
  uploader.cancel('r');
  assert_over(uploader);
  assert.deepEqual(seen.calls.slice(-3), ['onprogress', 'onerror', 'oncancelled']);
  const calls_before = seen.calls.length;
  for (let i = 0; i < 50; i++) {
    await settle();
    page.clock.advance(30_000);
  }
  assert.equal(attempts, 1 + 10);
  assert.deepEqual(page.clock.delays_ms(), []);
  assert.equal(seen.calls.length, calls_before);
});

test('telling stops when the server does not know the upload any more', LIMIT, async (t) => {
  const { server, page, uploader } = await set_up(t, 5000);
  uploader.cancel('r');
  const connection = await server.connection();
  await connection.expect('MsgUploadReq');
  connection.send('MsgError', { ErrorCode: 300, Msg: 'Unknown upload id - maybe upload timed out?' });
  await connection.drained();
  await eventually(() => page.clock.delays_ms().length === 0);
  await settle();
  assert.deepEqual(page.clock.delays_ms(), []);
  assert.equal(server.connections(), 1);
});

test('a connection that breaks while cancelling does not leave it cancelling', LIMIT, async (t) => {
  const { server, uploader, seen } = await set_up(t, 50_000);
  uploader.start();
  const first = await server.connection();
  await first.accept();
  await first.chunk();
  uploader.cancel('r');
  first.socket.terminate();
  await seen.until((up) => up.cancelled);
  assert_over(uploader);
  assert.equal(uploader.error_code, 501);
  const second = await server.connection();
  await second.accept({ offset: 1024 });
  await second.expect('MsgCancel');
});

test('a server that says nothing to a cancellation does not leave it cancelling', LIMIT, async (t) => {
  const { server, page, uploader, seen } = await set_up(t, 50_000);
  uploader.start();
  const connection = await server.connection();
  await connection.accept();
  await connection.chunk();
  uploader.cancel('r');
  await settle();
  assert.equal(uploader.state, 'cancelling');
  page.clock.advance(90_000);
  await seen.until((up) => up.cancelled);
  assert_over(uploader);
  assert.equal(uploader.connected, false);
});

test('a clean close in place of the confirmation confirms', LIMIT, async (t) => {
  const { server, uploader, seen } = await set_up(t, 50_000);
  uploader.start();
  const connection = await server.connection();
  await connection.accept();
  await connection.chunk();
  uploader.cancel('r');
  connection.socket.close(1000);
  await seen.until((up) => up.cancelled);
  assert_over(uploader);
  assert.equal(uploader.error_code, null);
});

test('a cancellation that the last acknowledgement overtakes is no cancellation', LIMIT, async (t) => {
  const { server, page, uploader, seen } = await set_up(t, 2048);
  uploader.start();
  const connection = await server.connection();
  await connection.accept();
  await connection.chunk();
  await connection.chunk();
  assert.equal(uploader.can_cancel, true);
  uploader.cancel('too late');
  connection.ack(1024);
  connection.ack(1024);
  await seen.until((up) => up.state === 'handover');
  assert.equal(uploader.cancelling, false);
  assert.equal(uploader.cancel_msg, null);
  assert.deepEqual(page.clock.delays_ms(), []);
  await connection.expect('MsgCancel');
  await connection.all_done();
  await seen.until((up) => up.finished);
  assert.equal(uploader.cancelled, false);
});

test('a cancelled upload stays cancelled', LIMIT, async (t) => {
  const { server, page, uploader, seen } = await set_up(t, 50_000);
  uploader.start();
  const connection = await server.connection();
  await connection.accept();
  uploader.cancel('first');
  connection.send('MsgCancelAck', { Ack: true });
  await seen.until((up) => up.cancelled && !up.connected);
  const calls = seen.calls.length;
  uploader.cancel('second');
  uploader.pause('toggle');
  uploader.start();
  page.window.dispatchEvent(new Event('online'));
  await settle();
  assert.equal(seen.calls.length, calls);
  assert.equal(uploader.cancel_msg, 'first');
  assert.equal(server.connections(), 1);
  assert.deepEqual(page.clock.delays_ms(), []);
});

for (const phase of ['handshake', 'chunks', 'handover']) {
  const reach = async (connection, seen) => {
    if (phase === 'handshake') {
      await connection.expect('MsgUploadReq');
      return;
    }
    await connection.accept();
    if (phase === 'handover') {
      await connection.take(5000);
      await seen.until((up) => up.state === 'handover');
    } else {
      await connection.chunk();
    }
  };

  test(`MsgCancel from the server: ${phase}`, LIMIT, async (t) => {
    const { server, uploader, seen } = await set_up(t, 5000);
    uploader.start();
    const connection = await server.connection();
    await reach(connection, seen);
    connection.send('MsgCancel', { Reason: 'the web app <b>says</b> so' });
    let event = await connection.next();
    while (event.chunk) event = await connection.next();
    assert.deepEqual(event, { MsgType: 'MsgCancel', MsgData: { Reason: 'the web app <b>says</b> so' } });
    await seen.until((up) => up.cancelling);
    connection.send('MsgCancelAck', { Ack: true });
    connection.socket.close(1000);
    await seen.until((up) => up.cancelled && !up.connected);
    assert_over(uploader);
    assert.equal(uploader.state, 'cancelled');
    assert.equal(uploader.error_code, null);
    assert.equal(uploader.cancel_msg, 'the web app  b says /b  so');
    assert.equal(seen.count('oncancelled'), 1);
    assert.equal(seen.count('onerror'), 0);
  });

  test(`MsgError from the server: ${phase}`, LIMIT, async (t) => {
    const { server, page, uploader, seen } = await set_up(t, 5000);
    uploader.start();
    const connection = await server.connection();
    await reach(connection, seen);
    connection.send('MsgError', { ErrorCode: 200, Msg: 'something broke' });
    connection.socket.close(1000);
    await seen.until((up) => up.cancelled && !up.connected);
    assert_over(uploader);
    assert.equal(uploader.state, 'failed');
    assert.equal(uploader.error_code, 200);
    assert.equal(uploader.error_msg, 'something broke');
    assert.equal(uploader.cancel_msg, 'something broke');
    assert.equal(uploader.state_msg, 'Upload failed on server side: something broke');
    assert.equal(seen.count('oncancelled'), 1);
    assert.equal(seen.count('onerror'), 1);
    assert.deepEqual(seen.calls.filter((name) => name !== 'onprogress'), ['onerror', 'oncancelled']);
    await settle();
    assert.deepEqual(page.clock.delays_ms(), []);
    assert.equal(server.connections(), 1);
  });

  test(`MsgError followed by a broken connection is still the end: ${phase}`, LIMIT, async (t) => {
    const { server, page, uploader, seen } = await set_up(t, 5000);
    uploader.start();
    const connection = await server.connection();
    await reach(connection, seen);
    connection.send('MsgError', { Msg: 'no code' });
    await seen.until((up) => up.cancelled);
    connection.socket.terminate();
    await seen.until((up) => !up.connected);
    assert.equal(uploader.error_code, 0);
    assert.deepEqual(page.clock.delays_ms(), []);
  });
}

test('a cancellation by the server survives the loss of the connection', LIMIT, async (t) => {
  const { server, page, uploader, seen } = await set_up(t, 5000);
  uploader.start();
  const connection = await server.connection();
  await connection.accept();
  connection.send('MsgCancel', { Reason: 'r' });
  await seen.until((up) => up.cancelling);
  connection.socket.terminate();
  await seen.until((up) => up.cancelled);
  assert_over(uploader);
  assert.equal(uploader.error_code, null);
  assert.deepEqual(page.clock.delays_ms(), []);
});

test('an error of an upload that is being cancelled is its end, and no error', LIMIT, async (t) => {
  const { server, uploader, seen } = await set_up(t, 50_000);
  uploader.start();
  const connection = await server.connection();
  await connection.accept();
  uploader.cancel('r');
  connection.send('MsgError', { ErrorCode: 302, Msg: 'upload is in no state for this' });
  await seen.until((up) => up.cancelled);
  assert_over(uploader);
  assert.equal(uploader.state, 'cancelled');
  assert.equal(uploader.error_code, null);
});

test('a page that may not connect is told so', LIMIT, async () => {
  class WebSocket {
    constructor() {
      throw Object.assign(new Error('mixed content'), { name: 'SecurityError' });
    }
  }
  const uploader = open_page({ WebSocket }).incoming.Uploader('t', new File(['abc'], 'f'));
  const seen = watch(uploader);
  uploader.start();
  assert_over(uploader);
  assert.equal(uploader.state, 'failed');
  assert.equal(uploader.error_code, 502);
  assert.match(uploader.error_msg, /SecurityError/);
  assert.deepEqual(seen.calls, ['onprogress', 'onerror', 'oncancelled']);
});
