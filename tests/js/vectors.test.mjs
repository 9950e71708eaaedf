// The messages that the server's tests use as well: what the library says is what the server reads,
// and what the server writes is what the library understands.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { open_page } from './harness.mjs';

const VECTORS = JSON.parse(readFileSync(new URL('../vectors/messages.json', import.meta.url)));

/** A socket in the hands of the test, under an uploader of a file of which only the size counts. */
function start(id, name, size) {
  const sent = [];
  let socket;
  class WebSocket {
    constructor() {
      socket = this;
      this.bufferedAmount = 0;
    }
    send(data) {
      if (typeof data === 'string') sent.push(data);
    }
    close() {}
  }
  const file = {
    name,
    size,
    slice: (begin, end) => ({ arrayBuffer: async () => new ArrayBuffer(end - begin) }),
  };
  const page = open_page({ WebSocket });
  const uploader = page.incoming.Uploader(id, file);
  uploader.start();
  socket.onopen();
  return { uploader, sent, hear: (text) => socket.onmessage({ data: text }) };
}

function confirm({ hear }, offset) {
  hear(JSON.stringify({ MsgType: 'MsgUploadConf', MsgData: { ChunkSizeKB: 512, FilePos: offset, SendAhead: 4 } }));
}

const ours = (name) => {
  const vector = VECTORS.client_to_server.find((it) => it.name === name);
  assert.ok(vector, `no vector '${name}'`);
  return vector;
};

for (const name of [
  'first message',
  'name outside ASCII',
  'name with what JSON escapes',
  'empty file',
  'largest length of a JavaScript number',
]) {
  test(`says: ${name}`, () => {
    const { text, data } = ours(name);
    assert.deepEqual(start(data.Id, data.Name, data.LengthBytes).sent, [text]);
  });
}

test('says: answer, pause, cancel', () => {
  const paused = start('t', 'f', 3_000_000);
  confirm(paused, 0);
  paused.uploader.pause('pause');
  assert.deepEqual(paused.sent.slice(1), [ours('answer to the confirmation').text, ours('pause').text]);

  const cancelled = start('t', 'f', 3_000_000);
  confirm(cancelled, 0);
  cancelled.uploader.cancel(ours('cancel').data.Reason);
  assert.equal(cancelled.sent.at(-1), ours('cancel').text);
});

// What each type does, in the phase in which it comes.
const EFFECTS = {
  MsgUploadConf(text, data) {
    const it = start('t', 'f', 3_000_000);
    it.hear(text);
    assert.equal(it.uploader.state, 'transferring');
    assert.equal(it.uploader.bytes_acked, data.FilePos);
  },
  async MsgChunkAck(text, data) {
    const it = start('t', 'f', 3_000_000);
    confirm(it, 0);
    while (it.uploader.bytes_tx < data.ChunkSize) await new Promise(setImmediate);
    it.hear(text);
    assert.equal(it.uploader.bytes_acked, data.ChunkSize);
  },
  MsgAllDone(text) {
    const it = start('t', 'f', 3_000_000);
    confirm(it, 3_000_000);
    it.hear(text);
    assert.equal(it.uploader.finished, true);
  },
  MsgCancelAck(text) {
    const it = start('t', 'f', 3_000_000);
    confirm(it, 0);
    it.uploader.cancel('r');
    it.hear(text);
    assert.equal(it.uploader.cancelled, true);
  },
  MsgCancel(text, data) {
    const it = start('t', 'f', 3_000_000);
    confirm(it, 0);
    it.hear(text);
    assert.equal(it.uploader.cancelling, true);
    assert.equal(it.uploader.cancel_msg, data.Reason);
  },
  MsgError(text, data) {
    const it = start('t', 'f', 3_000_000);
    it.hear(text);
    assert.equal(it.uploader.state, 'failed');
    assert.equal(it.uploader.error_code, data.ErrorCode);
    assert.equal(it.uploader.error_msg, data.Msg);
  },
};

for (const { name, text, type, data } of VECTORS.server_to_client) {
  test(`understands: ${name}`, () => EFFECTS[type](text, data));
}
