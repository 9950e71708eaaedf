// Where the bytes come from: byte streams, slices, Blobs; and files that cannot be read.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LIMIT, eventually, make_file, open_page, set_up, settle, start_server, watch } from './harness.mjs';

const FIREFOX = { CSS: { supports: (property, value) => property === '-moz-appearance' && value === 'none' } };

/** Counts how a file is read. */
function spy_on(file) {
  const count = { slices: 0, streams: 0, buffers: 0, read_bytes: 0 };
  const spy = (blob) => {
    const { slice, stream, arrayBuffer } = blob;
    blob.slice = (...args) => {
      count.slices++;
      return spy(slice.apply(blob, args));
    };
    blob.stream = () => {
      count.streams++;
      return stream.apply(blob);
    };
    blob.arrayBuffer = async () => {
      count.buffers++;
      const buffer = await arrayBuffer.apply(blob);
      count.read_bytes += buffer.byteLength;
      return buffer;
    };
    return blob;
  };
  spy(file);
  return count;
}

async function upload_all({ server, uploader, seen, bytes }, options) {
  uploader.start();
  const connection = await server.connection();
  await connection.accept(options);
  assert.ok((await connection.take(bytes.length)).equals(bytes));
  await connection.all_done();
  await seen.until((up) => up.finished);
}

test('byte streams: one stream for the whole file', LIMIT, async (t) => {
  const page = await set_up(t, 5_000_000);
  const count = spy_on(page.file);
  await upload_all(page, { chunk_kb: 64, ahead: 4 });
  assert.equal(count.streams, 1);
  assert.equal(count.buffers, 0);
});

test('slices where there are no byte streams, in blocks of a mebibyte', LIMIT, async (t) => {
  const page = await set_up(t, 5_000_000);
  const count = spy_on(page.file);
  const { slice } = page.file;
  page.file.slice = (...args) => {
    const blob = slice(...args);
    blob.stream = () => new ReadableStream({}); // not a stream of bytes
    return blob;
  };
  await upload_all(page, { chunk_kb: 64, ahead: 4 });
  assert.equal(count.streams, 0);
  assert.equal(count.buffers, 5);
});

test('slices of whole chunks where these are longer', LIMIT, async (t) => {
  const page = await set_up(t, 5_000_000);
  const { slice } = page.file;
  page.file.slice = (...args) => {
    const blob = slice.apply(page.file, args);
    blob.stream = undefined;
    return blob;
  };
  await upload_all(page, { chunk_kb: 2048, ahead: 2 });
  assert.equal(page.uploader.chunks_tx_now, 3);
});

test('Firefox sends parts of the file, unread', LIMIT, async (t) => {
  const page = await set_up(t, 5_000_000, FIREFOX);
  const count = spy_on(page.file);
  await upload_all(page, { chunk_kb: 1024, ahead: 4 });
  assert.equal(count.streams, 0);
  // The last byte is read first, to see whether the file can be read at all. Reading what is sent is
  // the WebSocket's affair.
  assert.equal(count.buffers - page.uploader.chunks_tx_now, 1);
});

test('Firefox resumes at an odd offset', LIMIT, async (t) => {
  const { server, uploader, bytes } = await set_up(t, 100_001, FIREFOX);
  uploader.start();
  const connection = await server.connection();
  await connection.accept({ offset: 33_333, chunk_kb: 7 });
  assert.ok((await connection.take(100_001 - 33_333)).equals(bytes.subarray(33_333)));
});

test('reading ahead is bounded', LIMIT, async (t) => {
  const { server, uploader, file } = await set_up(t, 20_000_000);
  const count = spy_on(file);
  const { slice } = file;
  file.slice = (...args) => {
    const blob = slice(...args);
    blob.stream = undefined;
    return blob;
  };
  uploader.start();
  const connection = await server.connection();
  await connection.accept({ chunk_kb: 64, ahead: 1 });
  await connection.chunk();
  await eventually(() => count.read_bytes >= 2 * 1024 * 1024);
  await settle();
  assert.equal(count.read_bytes, 2 * 1024 * 1024);
});

/** A file of which nothing can be read after so many bytes. */
function failing_file(length, readable_bytes, error) {
  const { file, bytes } = make_file(length);
  const broken = Object.create(file, {
    size: { value: length },
    name: { value: 'f' },
    slice: {
      value: (start, end = length) => ({
        size: end - start,
        arrayBuffer: async () => {
          if (end > readable_bytes) throw error;
          return new Uint8Array(bytes.subarray(start, end)).buffer;
        },
        stream: () => {
          let sent = start;
          return new ReadableStream({
            type: 'bytes',
            pull(controller) {
              if (sent >= readable_bytes) return controller.error(error);
              controller.enqueue(new Uint8Array(bytes.subarray(sent, Math.min(sent + 5000, readable_bytes))));
              sent += 5000;
            },
          });
        },
      }),
    },
  });
  return broken;
}

for (const [name, globals] of [['streams', {}], ['Blobs', FIREFOX]]) {
  test(`a file that cannot be read is cancelled with an error: ${name}`, LIMIT, async (t) => {
    const server = await start_server(t);
    const page = open_page({ host: server.host, ...globals });
    const error = Object.assign(new Error('<b>secret</b>'), { name: 'NotReadableError' });
    const uploader = page.incoming.Uploader('t', failing_file(3_000_000, 1_200_000, error));
    const seen = watch(uploader);
    uploader.start();
    const connection = await server.connection();
    await connection.accept({ chunk_kb: 64 });
    let event = await connection.next();
    while (event.chunk) {
      connection.ack(event.chunk.length);
      event = await connection.next();
    }
    const reason = 'error on file load: NotReadableError';
    assert.deepEqual(event, { MsgType: 'MsgCancel', MsgData: { Reason: reason } });
    await seen.until((up) => up.error_code !== null);
    assert.equal(uploader.error_code, 500);
    assert.equal(uploader.error_msg, reason);
    assert.equal(uploader.cancelling, true);
    connection.send('MsgCancelAck', { Ack: true });
    connection.socket.close(1000);
    await seen.until((up) => up.cancelled && !up.connected);
    assert.equal(uploader.state, 'failed');
    assert.equal(uploader.cancelling, false);
    assert.equal(seen.count('onerror'), 1);
    assert.equal(seen.count('oncancelled'), 1);
  });
}

test('a file that has become shorter is an error, not an endless wait', LIMIT, async (t) => {
  const server = await start_server(t);
  const page = open_page({ host: server.host });
  const { file } = make_file(10_000);
  Object.defineProperty(file, 'size', { value: 15_000 });
  const uploader = page.incoming.Uploader('t', file);
  const seen = watch(uploader);
  uploader.start();
  const connection = await server.connection();
  await connection.accept({ chunk_kb: 4 });
  await seen.until((up) => up.error_code === 500);
  assert.equal(uploader.error_msg, 'error on file load: FileEnded');
});

test('a paused upload reads nothing any more', LIMIT, async (t) => {
  const { server, uploader, seen, file } = await set_up(t, 20_000_000);
  const count = spy_on(file);
  const { slice } = file;
  file.slice = (...args) => {
    const blob = slice(...args);
    blob.stream = undefined;
    return blob;
  };
  uploader.start();
  const connection = await server.connection();
  await connection.accept({ chunk_kb: 1024, ahead: 1 });
  await seen.until((up) => up.chunks_tx_now > 0);
  uploader.pause('pause');
  await settle();
  // One block sent, one read, one being read.
  assert.ok(count.read_bytes <= 3 * 1024 * 1024);
  assert.equal(uploader.state, 'paused');
});

test('a socket that buffers more than two windows gets no more', LIMIT, async () => {
  const sockets = [];
  class WebSocket {
    constructor() {
      this.bufferedAmount = 0;
      this.sent = 0;
      sockets.push(this);
    }
    send(data) {
      if (typeof data !== 'string') this.sent++;
    }
    close() {}
    say(MsgType, MsgData) {
      this.onmessage({ data: JSON.stringify({ MsgType, MsgData }) });
    }
  }
  const page = open_page({ WebSocket });
  const uploader = page.incoming.Uploader('t', make_file(100_000).file);
  uploader.start();
  const [socket] = sockets;
  socket.onopen();
  socket.say('MsgUploadConf', { ChunkSizeKB: 1, FilePos: 0, SendAhead: 4 });
  await eventually(() => socket.sent >= 4);
  assert.equal(socket.sent, 4);
  socket.bufferedAmount = 2 * 4 * 1024 + 1;
  socket.say('MsgChunkAck', { ChunkSize: 1024 });
  assert.equal(socket.sent, 4);
  socket.bufferedAmount = 2 * 4 * 1024;
  socket.say('MsgChunkAck', { ChunkSize: 1024 });
  assert.equal(socket.sent, 6);
  // With nothing under way nothing would go on, so then the guard does not count.
  socket.bufferedAmount = 1_000_000;
  for (let i = 0; i < 4; i++) socket.say('MsgChunkAck', { ChunkSize: 1024 });
  assert.equal(socket.sent, 7);
});
