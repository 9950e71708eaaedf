// Whole conversations as servers hold them: new uploads, resumed ones, paused ones.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LIMIT, make_file, set_up, settle, watch } from './harness.mjs';

test('a new upload arrives whole', LIMIT, async (t) => {
  const { server, uploader, seen, bytes } = await set_up(t, 3_000_000);
  uploader.start();
  const connection = await server.connection();
  assert.equal(connection.path, '/incoming/0.1/frontend/upload_ws');
  const request = await connection.accept({ chunk_kb: 512, ahead: 4 });
  assert.deepEqual(request, { Id: 'ticket-1', LengthBytes: 3_000_000, Name: 'file.bin' });
  assert.ok((await connection.take(3_000_000)).equals(bytes));
  await seen.until((up) => up.state === 'handover');
  assert.equal(uploader.state_msg, 'handing file to app');
  assert.equal(uploader.frac_complete, 1);
  assert.equal(uploader.finished, false);
  await connection.all_done();
  await seen.until((up) => up.finished && !up.connected);
  assert.equal(uploader.state_msg, 'all done');
  assert.equal(seen.count('onfinished'), 1);
  assert.equal(seen.count('onerror') + seen.count('oncancelled'), 0);
  assert.equal(uploader.chunks_tx_now, 6);
});

test('messages are as long as the server says, the last one as long as what is left', LIMIT, async (t) => {
  const { server, uploader } = await set_up(t, 2_500_000);
  uploader.start();
  const connection = await server.connection();
  await connection.accept({ chunk_kb: 300, ahead: 100 });
  const lengths = [];
  while (lengths.length < 9) lengths.push((await connection.chunk()).length);
  assert.deepEqual(lengths, [...Array(8).fill(307_200), 2_500_000 - 8 * 307_200]);
});

test('messages longer than a read block are whole', LIMIT, async (t) => {
  const { server, uploader, bytes } = await set_up(t, 20_000_000);
  uploader.start();
  const connection = await server.connection();
  await connection.accept({ chunk_kb: 8192, ahead: 2 });
  const first = await connection.chunk();
  assert.equal(first.length, 8 * 1024 * 1024);
  connection.ack(first.length);
  const rest = await connection.take(20_000_000 - first.length);
  assert.ok(Buffer.concat([first, rest]).equals(bytes));
});

test('no more messages are under way than the server says', LIMIT, async (t) => {
  const { server, uploader } = await set_up(t, 100_000);
  uploader.start();
  const connection = await server.connection();
  await connection.accept({ chunk_kb: 1, ahead: 3 });
  for (let i = 0; i < 3; i++) await connection.chunk();
  await settle();
  assert.equal(connection.events.length, 0);
  assert.equal(uploader.chunks_ahead, 3);
  connection.ack(1024);
  await connection.chunk();
  await settle();
  assert.equal(connection.events.length, 0);
});

test('a server that announces nothing sensible gets one message at a time', LIMIT, async (t) => {
  const { server, uploader, bytes } = await set_up(t, 5000);
  uploader.start();
  const connection = await server.connection();
  await connection.accept({ chunk_kb: 1, ahead: 0 });
  assert.ok((await connection.take(5000)).equals(bytes));
});

test('a server that announces nothing gets messages that any server takes', LIMIT, async (t) => {
  const { server, uploader } = await set_up(t, 1_000_000);
  uploader.start();
  const connection = await server.connection();
  await connection.accept({ chunk_kb: null, ahead: null });
  assert.equal((await connection.chunk()).length, 524_288);
});

test('an acknowledgement may change chunk size and window', LIMIT, async (t) => {
  const { server, uploader, bytes } = await set_up(t, 100_000);
  uploader.start();
  const connection = await server.connection();
  await connection.accept({ chunk_kb: 1, ahead: 1 });
  const chunks = [await connection.chunk()];
  connection.send('MsgChunkAck', { ChunkSize: 1024, ChunkSizeKB: 4, SendAhead: 3 });
  for (let i = 0; i < 3; i++) chunks.push(await connection.chunk());
  assert.deepEqual(chunks.map((chunk) => chunk.length), [1024, 4096, 4096, 4096]);
  await settle();
  assert.equal(connection.events.length, 0);
  for (let i = 0; i < 3; i++) connection.ack(4096);
  chunks.push(await connection.take(100_000 - 1024 - 3 * 4096));
  assert.ok(Buffer.concat(chunks).equals(bytes));
});

test('a resume starts at an odd offset', LIMIT, async (t) => {
  const { server, uploader, seen, bytes } = await set_up(t, 3_000_000);
  uploader.start();
  const connection = await server.connection();
  await connection.accept({ offset: 1_234_567, chunk_kb: 512 });
  await seen.until((up) => up.state === 'transferring');
  assert.equal(uploader.bytes_acked, 1_234_567);
  assert.ok((await connection.take(3_000_000 - 1_234_567)).equals(bytes.subarray(1_234_567)));
  await connection.all_done();
  await seen.until((up) => up.finished);
});

test('the server may have less than it acknowledged', LIMIT, async (t) => {
  const { server, page, uploader, seen, bytes } = await set_up(t, 20_000);
  uploader.start();
  const first = await server.connection();
  await first.accept();
  await first.take(15_000);
  await seen.until((up) => up.bytes_acked >= 15_000);
  first.socket.terminate();
  await seen.until((up) => up.state === 'offline');
  page.clock.advance(1000);
  const second = await server.connection();
  await second.accept({ offset: 7001 });
  assert.ok((await second.take(20_000 - 7001)).equals(bytes.subarray(7001)));
  await second.all_done();
  await seen.until((up) => up.finished);
  assert.equal(uploader.bytes_acked, 20_000);
  assert.equal(uploader.bytes_tx, 20_000);
});

test('a server that has everything already finishes without a chunk', LIMIT, async (t) => {
  const { server, uploader, seen } = await set_up(t, 5000);
  uploader.start();
  const connection = await server.connection();
  await connection.accept({ offset: 5000 });
  await seen.until((up) => up.state === 'handover');
  assert.equal(uploader.state_msg, 'processing file on server');
  assert.equal(uploader.frac_complete, 1);
  assert.equal(uploader.can_cancel, false);
  await connection.all_done();
  await seen.until((up) => up.finished);
  assert.equal(connection.events.length, 0);
});

test('an empty file is handed over', LIMIT, async (t) => {
  const { server, uploader, seen } = await set_up(t, 0);
  assert.equal(uploader.frac_complete, 0);
  uploader.start();
  const connection = await server.connection();
  assert.equal((await connection.accept()).LengthBytes, 0);
  await seen.until((up) => up.state === 'handover');
  assert.equal(uploader.frac_complete, 1);
  await connection.all_done();
  await seen.until((up) => up.finished);
  assert.equal(uploader.bytes_acked, 0);
});

test('two uploads at once do not touch each other', LIMIT, async (t) => {
  const { server, page } = await set_up(t, 0);
  const files = [make_file(30_000, 'a'), make_file(50_000, 'b')];
  const watched = files.map(({ file }, i) => {
    const uploader = page.incoming.Uploader(`ticket-${i}`, file);
    const seen = watch(uploader);
    uploader.start();
    return { uploader, seen };
  });
  await Promise.all(
    watched.map(async () => {
      const connection = await server.connection();
      const request = await connection.accept();
      const { bytes } = files[Number(request.Id.at(-1))];
      assert.ok((await connection.take(bytes.length)).equals(bytes));
      await connection.all_done();
    }),
  );
  for (const { seen } of watched) await seen.until((up) => up.finished);
});

test('pause tells the server and closes; unpause goes on from where the server is', LIMIT, async (t) => {
  const { server, uploader, seen, bytes } = await set_up(t, 10_000);
  uploader.start();
  const first = await server.connection();
  await first.accept({ ahead: 2 });
  const taken = await first.take(3072);
  await seen.until((up) => up.bytes_acked === 3072);
  uploader.pause('pause');
  assert.equal(uploader.paused, true);
  assert.equal(uploader.connected, false);
  assert.equal(uploader.state_msg, 'paused');
  assert.equal(uploader.bytes_ahead, 0);
  const late = [];
  for (;;) {
    const event = await first.next();
    if (!event.chunk) {
      assert.deepEqual(event, { MsgType: 'MsgPause', MsgData: { Pause: true } });
      break;
    }
    late.push(event.chunk);
  }
  assert.equal(await first.closed(), 1005);
  await settle();
  assert.equal(server.connections(), 1);
  uploader.pause('unpause');
  const second = await server.connection();
  const offset = 3072 + Buffer.concat(late).length;
  await second.accept({ offset });
  const rest = await second.take(10_000 - offset);
  assert.ok(Buffer.concat([taken, ...late, rest]).equals(bytes));
  await second.all_done();
  await seen.until((up) => up.finished);
  assert.equal(seen.count('onerror'), 0);
});

test('a pause before the server has answered only closes', LIMIT, async (t) => {
  const { server, uploader, seen } = await set_up(t, 10_000);
  uploader.start();
  const connection = await server.connection();
  await connection.expect('MsgUploadReq');
  await seen.until((up) => up.connected);
  uploader.pause('pause');
  assert.equal(uploader.state, 'paused');
  assert.equal(await connection.closed(), 1005);
});

test('toggle toggles', LIMIT, async (t) => {
  const { server, uploader, seen } = await set_up(t, 10_000);
  uploader.start();
  await (await server.connection()).accept();
  await seen.until((up) => up.state === 'transferring');
  uploader.pause('toggle');
  assert.equal(uploader.state, 'paused');
  uploader.pause('pause');
  assert.equal(uploader.state, 'paused');
  uploader.pause('toggle');
  assert.equal(uploader.state, 'connecting');
  uploader.pause('unpause');
  await (await server.connection()).accept();
  await seen.until((up) => up.state === 'transferring');
  assert.equal(server.connections(), 2);
});

test('quick toggles leave one connection, and no event of an older one counts', LIMIT, async (t) => {
  const { server, uploader, seen, bytes } = await set_up(t, 100_000);
  uploader.start();
  const first = await server.connection();
  await first.accept({ ahead: 8 });
  await seen.until((up) => up.bytes_tx >= 8192);
  for (let i = 0; i < 3; i++) {
    uploader.pause('pause');
    uploader.pause('unpause');
  }
  // Acknowledgements and an error of the older conversation, which arrive after its end.
  first.ack(1024);
  first.send('MsgError', { ErrorCode: 0, Msg: 'of the past' });
  // Those that were given up while they were connecting may not have reached the server.
  let last = await server.connection();
  while ((await last.next()).MsgType !== 'MsgUploadReq') last = await server.connection();
  last.send('MsgUploadConf', { ChunkSizeKB: 1, FilePos: 8192, SendAhead: 4 });
  await last.expect('MsgAck');
  assert.ok((await last.take(100_000 - 8192)).equals(bytes.subarray(8192)));
  await last.all_done();
  await seen.until((up) => up.finished);
  assert.equal(uploader.error_code, null);
  assert.ok(!seen.states.includes('offline'));
});

test('start does not start twice', LIMIT, async (t) => {
  const { server, uploader, seen } = await set_up(t, 3000);
  uploader.start();
  uploader.start();
  const connection = await server.connection();
  await connection.accept();
  await seen.until((up) => up.connected);
  uploader.start();
  await connection.take(3000);
  await connection.all_done();
  await seen.until((up) => up.finished && !up.connected);
  uploader.start();
  await settle();
  assert.equal(server.connections(), 1);
});

test('acknowledgements may be split and joined', LIMIT, async (t) => {
  const { server, uploader, seen, bytes } = await set_up(t, 6144);
  uploader.start();
  const connection = await server.connection();
  await connection.accept({ chunk_kb: 1, ahead: 2 });
  const chunks = [await connection.chunk(), await connection.chunk()];
  connection.ack(500);
  connection.ack(524);
  chunks.push(await connection.chunk());
  await seen.until((up) => up.bytes_acked === 1024);
  assert.equal(uploader.chunks_acked_now, 1);
  connection.ack(2048);
  chunks.push(await connection.take(3072));
  assert.ok(Buffer.concat(chunks).equals(bytes));
  await connection.all_done();
  await seen.until((up) => up.finished);
  assert.equal(uploader.chunks_acked_now, 6);
});

test('what cannot be understood is passed over in silence, in every phase', LIMIT, async (t) => {
  const { server, uploader, seen, bytes } = await set_up(t, 4096);
  const babble = (connection) => {
    connection.socket.send('no JSON');
    connection.socket.send(Buffer.from([1, 2, 3]));
    connection.socket.send('null');
    connection.socket.send('{"MsgType":7}');
    connection.send('MsgUnheardOf', { A: 1 });
    connection.send('MsgCancelAck', { Ack: true });
    connection.send('MsgChunkAck', { ChunkSize: -5 });
    connection.send('MsgChunkAck', {});
  };
  uploader.start();
  const connection = await server.connection();
  await connection.expect('MsgUploadReq');
  babble(connection);
  connection.send('MsgAllDone', { Success: true });
  connection.send('MsgUploadConf', { ChunkSizeKB: 1, FilePos: 99_999, SendAhead: 1 });
  connection.send('MsgUploadConf', { ChunkSizeKB: 1, FilePos: 0, SendAhead: 1 });
  await connection.expect('MsgAck');
  const first = await connection.chunk();
  babble(connection);
  connection.send('MsgAllDone', { Success: true });
  connection.send('MsgUploadConf', { ChunkSizeKB: 9, FilePos: 0, SendAhead: 9 });
  connection.ack(1024);
  const rest = await connection.take(3072);
  assert.ok(Buffer.concat([first, rest]).equals(bytes));
  await seen.until((up) => up.state === 'handover');
  babble(connection);
  connection.ack(1024);
  await settle();
  assert.equal(uploader.bytes_acked, 4096);
  await connection.all_done();
  await seen.until((up) => up.finished);
  assert.equal(uploader.error_code, null);
});

test('rate and eta follow the acknowledgements', LIMIT, async (t) => {
  const { server, page, uploader, seen } = await set_up(t, 10_240);
  uploader.start();
  const connection = await server.connection();
  await connection.accept({ chunk_kb: 1, ahead: 1 });
  assert.equal(uploader.rate, 0);
  assert.equal(uploader.eta, null);
  for (let i = 1; i <= 5; i++) {
    await connection.chunk();
    page.clock.advance(500);
    connection.ack(1024);
    await seen.until((up) => up.bytes_acked === i * 1024);
  }
  assert.ok(Math.abs(uploader.rate - 2048) < 1, `${uploader.rate}`);
  assert.ok(Math.abs(uploader.eta - 2.5) < 0.01, `${uploader.eta}`);
  // After one half-life at a tenth of the rate, half of the difference is gone.
  await connection.chunk();
  page.clock.advance(2000);
  connection.ack(0);
  connection.ack(1024);
  await seen.until((up) => up.bytes_acked === 6 * 1024);
  assert.ok(uploader.rate < 1400 && uploader.rate > 512, `${uploader.rate}`);
  uploader.pause('pause');
  assert.equal(uploader.rate, 0);
  assert.equal(uploader.eta, null);
});
