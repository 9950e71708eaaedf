// A server that speaks the protocol's first version and nothing more: it refuses a second connection
// for a ticket, knows no error codes, and does not say so when the web app cancels. What the library
// does against it, it also does against servers that are in use since then.

import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { closeSync, openSync, readFileSync, unlinkSync, writeSync } from 'node:fs';
import http from 'node:http';
import { join } from 'node:path';
import { WebSocketServer } from 'ws';

const LIBRARY = new URL('../../js/incoming.js', import.meta.url);
const CHUNK_KB = 512;
const SEND_AHEAD = 4;
const BUSY = 'Another websocket connection already deals with this upload';

class Ticket {
  constructor(params, storage_dir) {
    this.id = randomUUID();
    this.url = params.get('signalFinishURL');
    this.secret = params.get('backendSecret') || params.get('signalFinishSecret') || '';
    this.path = join(storage_dir, this.id);
    this.received_bytes = 0;
    this.bound = false;
    this.over = false;
    this.handover = null; // resolves when the web app has the file
    this.finish = null; // ends the wait for a web app that answered `wait`
  }

  async hand_over() {
    if ((await this.call(null)) === 'wait') await new Promise((resolve) => (this.finish = resolve));
    this.over = true;
  }

  /** Tells the web app, and resolves to its answer. */
  async call(cancel_reason) {
    const form = {
      id: this.id,
      backendSecret: this.secret,
      secret: this.secret,
      filename: cancel_reason === null ? this.path : '',
      filenameFromBrowser: this.name || '',
      cancelled: cancel_reason === null ? 'no' : 'yes',
      cancelReason: cancel_reason || '',
    };
    const response = await fetch(this.url, { method: 'POST', body: new URLSearchParams(form) });
    return response.text();
  }
}

function converse(ticket_of, socket) {
  let ticket = null;
  let phase = 'request';
  let file = null;
  const say = (type, data) => socket.send(JSON.stringify({ MsgType: type, MsgData: data }));
  const end = (type, data) => {
    say(type, data);
    socket.close(1000);
    phase = 'over';
  };
  const error = (msg) => end('MsgError', { ErrorCode: 0, Msg: msg });

  function begin(data) {
    ticket = ticket_of(data.Id);
    if (!ticket || ticket.over) return error('Unknown upload id - maybe upload timed out?');
    if (ticket.bound) return error(BUSY);
    ticket.bound = true;
    ticket.name = data.Name;
    ticket.length_bytes = data.LengthBytes;
    phase = 'ack';
    say('MsgUploadConf', { ChunkSizeKB: CHUNK_KB, FilePos: ticket.received_bytes, SendAhead: SEND_AHEAD });
  }

  async function hand_over() {
    phase = 'handover';
    ticket.handover ||= ticket.hand_over();
    await ticket.handover;
    if (phase !== 'over') end('MsgAllDone', { Success: true });
  }

  function chunk(bytes) {
    if (ticket.over) return error('Error while consuming file chunk: upload is in no state for this.');
    writeSync(file, bytes);
    ticket.received_bytes += bytes.length;
    say('MsgChunkAck', { ChunkSize: bytes.length });
    if (ticket.received_bytes === ticket.length_bytes) hand_over();
  }

  async function cancel(reason) {
    phase = 'cancel';
    ticket.over = true;
    unlinkSync(ticket.path);
    await ticket.call(reason);
    end('MsgCancelAck', { Ack: true });
  }

  socket.on('message', (data, is_binary) => {
    if (phase === 'chunks' && is_binary) return chunk(data);
    if (is_binary || phase === 'over') return;
    const message = JSON.parse(data);
    if (phase === 'request') return begin(message.MsgData);
    if (phase === 'ack') {
      if (!message.MsgData.Ack) return error('you nack-ed');
      file = openSync(ticket.path, 'a');
      phase = 'chunks';
      if (ticket.received_bytes === ticket.length_bytes) hand_over();
    } else if (phase === 'chunks' && message.MsgType === 'MsgCancel') {
      cancel(message.MsgData.Reason);
    }
  });
  socket.on('error', () => {});
  socket.on('close', () => {
    if (file !== null) closeSync(file);
    if (file !== null || phase === 'ack') ticket.bound = false;
    phase = 'over';
  });
}

export async function start_scripted_server(storage_dir) {
  const tickets = new Map();

  function answer(path, params) {
    if (path.endsWith('/frontend/incoming.js')) return [200, readFileSync(LIBRARY), 'text/javascript'];
    if (path.endsWith('/backend/new_upload')) {
      const ticket = new Ticket(params, storage_dir);
      tickets.set(ticket.id, ticket);
      return [200, ticket.id];
    }
    const ticket = tickets.get(params.get('id'));
    if (!ticket) return [400, 'id unknown'];
    if (path.endsWith('/backend/cancel_upload')) {
      ticket.over = true;
    } else if (path.endsWith('/backend/finish_upload')) {
      if (!ticket.finish) return [412, 'no waiting handover routine'];
      ticket.finish();
    }
    return [200, 'ok'];
  }

  const listener = http.createServer((request, response) => {
    const url = new URL(request.url, 'http://server');
    const [status, body, type = 'text/plain'] = answer(url.pathname, url.searchParams);
    response.writeHead(status, { 'Content-Type': `${type}; charset=utf-8` });
    response.end(body);
  });
  const sockets = new WebSocketServer({ server: listener, perMessageDeflate: false, maxPayload: 1 << 24 });
  sockets.on('connection', (socket) => converse((id) => tickets.get(id), socket));
  listener.listen(0, '127.0.0.1');
  await once(listener, 'listening');
  return {
    host: `127.0.0.1:${listener.address().port}`,
    stop() {
      for (const socket of sockets.clients) socket.terminate();
      listener.close();
      listener.closeAllConnections();
    },
  };
}
