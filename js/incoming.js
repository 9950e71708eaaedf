/*
 * incoming.js: the browser's side of Incoming!!, a server for uploads of any size.
 *
 * A classic script without dependencies and without a build step. It defines one global, `incoming`:
 *
 *     const uploader = incoming.Uploader(ticket_id, file);
 *     uploader.onprogress = (uploader) => { ... };
 *     uploader.start();
 *
 * Reading order: Source (where bytes come from), Link (one WebSocket), Transfer (one upload over
 * any number of links), Uploader (what a page sees). The types are in incoming.d.ts.
 *
 * Baseline: Chrome 89, Firefox 102, Safari 14.1. Licence: MIT OR Apache-2.0.
 */
(() => {
  'use strict';

  const UPLOAD_PATH = '/incoming/0.1/frontend/upload_ws';

  // A server that has not answered the request by then is not going to; try again.
  const HANDSHAKE_TIMEOUT_MS = 20_000;

  // The server confirms a cancellation after it has told the web app, which may take it a minute.
  const CANCEL_TIMEOUT_MS = 90_000;

  // Reconnecting waits 0.5 s, 1 s, 2 s ... 20 s, plus up to half of that again, so that the clients
  // of a restarted server do not come back all at once; never more than 30 s.
  const RETRY_FIRST_MS = 500;
  const RETRY_LAST_MS = 20_000;

  // How often a cancellation that the server has not heard of is brought to it in the background.
  const TELL_ATTEMPTS_MAX = 10;

  // In Chromium every read of a file costs about a millisecond, whatever its size. So files are read
  // in large blocks, and messages are cut from them.
  const BLOCK_BYTES = 1024 * 1024;

  // Any message shorter than the server's suggestion is legal; longer ones than this gain nothing.
  const CHUNK_BYTES_MAX = 8 * 1024 * 1024;
  const CHUNK_BYTES_DEFAULT = 512 * 1024;

  // `rate` forgets half of what it knows in this time.
  const RATE_HALF_LIFE_MS = 2000;

  // Close code: another connection has taken over this upload.
  const TAKEN_OVER = 4001;

  // Servers of the first generation refuse a second connection for a ticket, for good. It is the only
  // refusal that passes by itself (when they notice that the first connection is gone).
  const BUSY_MSG = 'Another websocket connection already deals with this upload';

  // The library's own error codes. The server's are below 500.
  const ERROR_FILE_READ = 500;
  const ERROR_CANCELLED_UNHEARD = 501;
  const ERROR_CANNOT_CONNECT = 502;

  const OVER = new Set(['finished', 'cancelled', 'failed']);

  // ---------------------------------------------------------------------------------------------
  // Sources: the bytes of a file from an offset on, in pieces that a WebSocket can send.
  //
  //   consume(length_max, send)   gives the next piece to `send` and returns its length, or returns
  //                               0 when nothing is there yet; `ready` is called as soon as it is.
  //   close()                     ends reading; neither `ready` nor `failed` is called afterwards.

  function open_source(file, offset, ready, failed, chunk_bytes) {
    const Source = sends_blobs_fast() ? BlobSource : BlockSource;
    return new Source(file, offset, ready, failed, chunk_bytes);
  }

  // Firefox sends a part of a file faster than it reads one: its socket takes the bytes without a
  // detour through the page. Everybody else is faster with blocks.
  function sends_blobs_fast() {
    return typeof CSS !== 'undefined' && CSS.supports('-moz-appearance', 'none');
  }

  class BlobSource {
    constructor(file, offset, ready, failed) {
      this.file = file;
      this.offset = offset;
      this.readable = false;
      this.closed = false;
      this.probe(ready, failed);
    }

    // A WebSocket that cannot read a Blob just breaks, and would do so again after each reconnect.
    // Reading the last byte here tells a file that has gone or shrunk from a network that has.
    async probe(ready, failed) {
      try {
        await read_slice(this.file, this.file.size - 1, 1);
        this.readable = true;
      } catch (error) {
        if (!this.closed) failed(error);
        return;
      }
      if (!this.closed) ready();
    }

    consume(length_max, send) {
      if (!this.readable) return 0;
      const piece = this.file.slice(this.offset, this.offset + length_max);
      send(piece);
      this.offset += piece.size;
      return piece.size;
    }

    close() {
      this.closed = true;
    }
  }

  // Two blocks: one to cut messages from, while the other one is being filled.
  class BlockSource {
    constructor(file, offset, ready, failed, chunk_bytes) {
      this.chunk_bytes = chunk_bytes; // may be changed at any time
      this.file = file;
      this.offset = offset; // of the next byte to read
      this.blocks = []; // read and not yet sent, oldest first
      this.spare = null; // the memory of a block that has been sent
      this.reader = open_byte_reader(file, offset);
      this.ready = ready;
      this.failed = failed;
      this.filling = false;
      this.closed = false;
      this.fill();
    }

    // A whole number of chunks, so that a message never has to span two blocks.
    block_bytes() {
      return Math.max(1, Math.floor(BLOCK_BYTES / this.chunk_bytes)) * this.chunk_bytes;
    }

    async fill() {
      if (this.filling) return;
      this.filling = true;
      while (!this.closed && this.offset < this.file.size && this.blocks.length < 2) {
        const length = Math.min(this.block_bytes(), this.file.size - this.offset);
        let block;
        try {
          block = await (this.reader ? this.read(length) : read_slice(this.file, this.offset, length));
        } catch (error) {
          if (!this.closed) this.failed(error);
          return;
        }
        if (this.closed) return;
        this.offset += length;
        this.blocks.push(block);
        this.ready();
      }
      this.filling = false;
    }

    // Fills the spare memory instead of having new memory made for every read.
    async read(length) {
      let buffer = this.spare;
      this.spare = null;
      if (!buffer || buffer.byteLength < length) buffer = new ArrayBuffer(length);
      let filled = 0;
      while (filled < length) {
        const { value, done } = await this.reader.read(new Uint8Array(buffer, filled, length - filled));
        if (done) throw new FileEnded();
        buffer = value.buffer;
        filled += value.byteLength;
      }
      return new Uint8Array(buffer, 0, length);
    }

    consume(length_max, send) {
      const block = this.blocks[0];
      if (!block) return 0;
      const length = Math.min(length_max, block.length);
      send(block.subarray(0, length)); // copies
      if (length < block.length) {
        this.blocks[0] = block.subarray(length);
      } else {
        this.blocks.shift();
        this.spare = block.buffer;
        this.fill(); // takes the block's memory away
      }
      return length;
    }

    close() {
      this.closed = true;
      if (this.reader) this.reader.cancel().catch(() => {});
    }
  }

  // Safari before 26.4 has no byte streams; it reads slices.
  function open_byte_reader(file, offset) {
    try {
      return file.slice(offset).stream().getReader({ mode: 'byob' });
    } catch {
      return null;
    }
  }

  async function read_slice(file, offset, length) {
    const buffer = await file.slice(offset, offset + length).arrayBuffer();
    if (buffer.byteLength !== length) throw new FileEnded();
    return new Uint8Array(buffer);
  }

  // The file has become shorter than it was when the user chose it.
  class FileEnded extends Error {
    constructor() {
      super('the file has become shorter');
      this.name = 'FileEnded';
    }
  }

  // ---------------------------------------------------------------------------------------------
  // Link: one WebSocket, from connecting to close. It says who it is as soon as it is open.

  class Link {
    constructor(request, handlers) {
      this.handlers = handlers; // opened(), heard(type, data), closed(code)
      this.confirmed = false; // the server has answered the request
      this.cancel_sent = false;
      const ws = (this.ws = new WebSocket(request.url));
      ws.onopen = () => {
        this.send('MsgUploadReq', {
          Id: request.id,
          LengthBytes: request.length_bytes,
          Name: request.name,
        });
        this.handlers.opened();
      };
      ws.onmessage = (event) => this.receive(event.data);
      ws.onclose = (event) => this.end(event.code);
      ws.onerror = () => {}; // says nothing that the close event does not say
      this.timer = setTimeout(() => this.give_up(), HANDSHAKE_TIMEOUT_MS);
    }

    // What cannot be understood is not worth an upload: a newer server may say more than we know.
    receive(text) {
      let message;
      try {
        message = JSON.parse(text);
      } catch {
        return;
      }
      if (!message || typeof message.MsgType !== 'string') return;
      this.handlers.heard(message.MsgType, message.MsgData || {});
    }

    send(type, data) {
      this.ws.send(JSON.stringify({ MsgType: type, MsgData: data }));
    }

    confirm() {
      this.confirmed = true;
      clearTimeout(this.timer);
      this.send('MsgAck', { Ack: true });
    }

    // At most once, however many reasons there are.
    send_cancel(reason) {
      if (this.cancel_sent) return;
      this.cancel_sent = true;
      this.send('MsgCancel', { Reason: reason });
    }

    // Closes, and nothing that happens to the socket from here on reaches the handlers.
    hang_up() {
      clearTimeout(this.timer);
      this.handlers = { opened() {}, heard() {}, closed() {} };
      this.ws.close();
    }

    // Does not wait for the close event, which on a dead network may take minutes.
    give_up() {
      const handlers = this.handlers;
      this.hang_up();
      handlers.closed(0);
    }

    end(code) {
      clearTimeout(this.timer);
      this.handlers.closed(code);
    }
  }

  // ---------------------------------------------------------------------------------------------
  // Retrying: after a while, or at once when the network or the user comes back.

  const retries = new Set();

  function retry_later(attempt, run) {
    const base_ms = Math.min(RETRY_FIRST_MS * 2 ** attempt, RETRY_LAST_MS);
    const delay_ms = base_ms * (1 + Math.random() / 2);
    const retry = {
      delay_ms,
      timer: setTimeout(() => retry.now(), delay_ms),
      stop() {
        clearTimeout(retry.timer);
        retries.delete(retry);
      },
      now() {
        retry.stop();
        run();
      },
    };
    retries.add(retry);
    return retry;
  }

  function retry_all_now() {
    for (const retry of [...retries]) retry.now();
  }

  if (typeof addEventListener === 'function' && typeof document !== 'undefined') {
    addEventListener('online', retry_all_now);
    addEventListener('pageshow', retry_all_now);
    document.addEventListener('visibilitychange', () => {
      if (document.visibilityState === 'visible') retry_all_now();
    });
  }

  // Brings a cancellation to a server that could not be reached when the user cancelled. Nobody
  // waits for it; a server that never hears of it cancels the upload when it has been idle too long.
  function tell_cancelled(request, reason, attempt) {
    let told = false;
    const link = new Link(request, {
      opened() {},
      heard(type, data) {
        if (type === 'MsgUploadConf' && !link.confirmed) {
          link.confirm();
          link.send_cancel(reason);
        } else if (type === 'MsgCancel') {
          link.send_cancel(reason);
        } else if (type === 'MsgCancelAck' || type === 'MsgAllDone' || type === 'MsgError') {
          told = data.Msg !== BUSY_MSG;
          link.ws.close();
        }
      },
      closed(code) {
        if (told || code === TAKEN_OVER || attempt + 1 >= TELL_ATTEMPTS_MAX) return;
        retry_later(attempt, () => tell_cancelled(request, reason, attempt + 1));
      },
    });
  }

  // ---------------------------------------------------------------------------------------------
  // Rate: bytes per second over the last few seconds. It only moves when something is acknowledged,
  // so it needs no timer; the weight of what was before halves with each half-life.

  class Rate {
    constructor() {
      this.bytes = 0;
      this.ms = 0;
      this.last_ms = performance.now();
    }

    add(bytes) {
      const now_ms = performance.now();
      const elapsed_ms = now_ms - this.last_ms;
      const weight = 0.5 ** (elapsed_ms / RATE_HALF_LIFE_MS);
      this.bytes = this.bytes * weight + bytes;
      this.ms = this.ms * weight + elapsed_ms;
      this.last_ms = now_ms;
    }

    bytes_per_second() {
      return this.ms > 0 ? (this.bytes * 1000) / this.ms : 0;
    }
  }

  // ---------------------------------------------------------------------------------------------
  // Transfer: one upload. `up` is the object that the page holds; its flags follow from its state,
  // in `enter` and nowhere else. Every method ends with the callbacks it causes, because a callback
  // may call pause() or cancel(), and what comes after it would work with what was before it.

  class Transfer {
    constructor(up, id, file) {
      this.up = up;
      this.file = file;
      this.request = { url: null, id, length_bytes: file.size, name: up.filename };
      this.link = null;
      this.source = null;
      this.retry = null; // set in state 'offline'
      this.attempt = 0; // reconnects since the last progress
      this.cancel_timer = null; // set in state 'cancelling'
      this.server_cancels = false; // the server wants the cancellation, so it knows
      this.begun = false; // the server has accepted the upload before
      this.complete = false; // the server has every byte
      this.chunk_bytes = 0;
      this.send_ahead = 0;
      this.unacked = []; // where each message that is under way ends in the file
      this.rate = null; // set in state 'transferring'
    }

    // -- what the page asks for

    start() {
      if (['new', 'offline', 'paused', 'taken_over'].includes(this.up.state)) this.connect();
    }

    pause(what) {
      const paused = this.up.state === 'paused';
      if (what === 'toggle') what = paused ? 'unpause' : 'pause';
      if (what === 'unpause') {
        if (paused) this.connect();
      } else if (what === 'pause') {
        if (['connecting', 'transferring', 'offline'].includes(this.up.state) && !this.complete) {
          if (this.link && this.link.confirmed) this.link.send('MsgPause', { Pause: true });
          this.disconnect();
          this.enter('paused', 'paused');
        }
      } else {
        throw new TypeError("pause() takes 'pause', 'unpause' or 'toggle'");
      }
    }

    cancel(reason) {
      if (!this.up.can_cancel) return;
      this.up.cancel_msg = reason;
      if (this.up.connected) {
        this.begin_cancel();
      } else {
        this.disconnect();
        this.cancelled_unheard();
      }
    }

    // -- the connection

    connect() {
      if (this.retry) this.retry.stop();
      this.retry = null;
      this.request.url = this.request.url || upload_url();
      try {
        this.link = new Link(this.request, {
          opened: () => this.opened(),
          heard: (type, data) => this.heard(type, data),
          closed: (code) => this.closed(code),
        });
      } catch (error) {
        // The URL is wrong, or the page may not use it. That does not get better by waiting.
        const msg = `cannot connect to upload server: ${error.name}`;
        this.failed(ERROR_CANNOT_CONNECT, msg, msg);
        return;
      }
      this.up.chunks_tx_now = 0;
      this.up.chunks_acked_now = 0;
      this.enter('connecting', 'connecting to upload server');
    }

    // Lets go of the connection. What was under way counts as not sent.
    disconnect() {
      if (this.retry) this.retry.stop();
      this.retry = null;
      this.stop_sending();
      if (this.link) this.link.hang_up();
      this.link = null;
      this.unacked = [];
      this.up.bytes_tx = this.up.bytes_acked;
      this.up.connected = false;
    }

    stop_sending() {
      if (this.source) this.source.close();
      this.source = null;
      this.rate = null;
    }

    opened() {
      this.up.connected = true;
      this.enter('connecting', 'upload protocol handshake');
    }

    closed(code) {
      this.disconnect();
      if (OVER.has(this.up.state)) {
        this.notify();
      } else if (this.up.state === 'cancelling') {
        // 1000 means that the server has ended the conversation as it should.
        if (this.server_cancels || code === 1000) this.cancelled();
        else this.cancelled_unheard();
      } else if (code === TAKEN_OVER) {
        this.enter('taken_over', 'taken over by another connection');
      } else {
        this.retry = retry_later(this.attempt++, () => this.connect());
        const delay_s = Math.ceil(this.retry.delay_ms / 1000);
        this.enter('offline', `lost connection, trying again in ${delay_s} s`);
      }
    }

    // -- what the server says

    heard(type, data) {
      if (OVER.has(this.up.state)) return;
      switch (type) {
        case 'MsgUploadConf':
          return this.heard_conf(data);
        case 'MsgChunkAck':
          return this.heard_chunk_ack(data);
        case 'MsgAllDone':
          return this.heard_all_done();
        case 'MsgCancel':
          return this.heard_cancel(String(data.Reason || ''));
        case 'MsgCancelAck':
          return this.link.cancel_sent ? this.cancelled() : undefined;
        case 'MsgError':
          return this.heard_error(data);
      }
    }

    heard_conf(data) {
      const { up } = this;
      const offset = data.FilePos;
      if (this.link.confirmed || !(Number.isInteger(offset) && offset >= 0 && offset <= up.bytes_total)) return;
      this.link.confirm();
      if (up.state === 'cancelling') {
        this.link.send_cancel(up.cancel_msg);
        return;
      }
      this.chunk_bytes = CHUNK_BYTES_DEFAULT;
      this.send_ahead = 1;
      this.adopt_window(data);
      // Possibly less than what was acknowledged before: the server knows what it has.
      up.bytes_acked = up.bytes_tx = offset;
      this.begun = true;
      this.complete = offset === up.bytes_total;
      if (this.complete) {
        this.enter('handover', 'processing file on server');
        return;
      }
      this.rate = new Rate();
      this.source = open_source(
        this.file,
        offset,
        () => this.pump(),
        (error) => this.read_failed(error),
        this.chunk_bytes,
      );
      this.enter('transferring', 'transfer file chunks to upload server');
    }

    // The server dictates, when it accepts the upload and perhaps again with each acknowledgement.
    adopt_window(data) {
      if (data.ChunkSizeKB >= 1) this.chunk_bytes = Math.min(Math.floor(data.ChunkSizeKB) * 1024, CHUNK_BYTES_MAX);
      if (data.SendAhead >= 1) this.send_ahead = Math.floor(data.SendAhead);
      if (this.source) this.source.chunk_bytes = this.chunk_bytes;
    }

    // Counted in bytes, so that it does not matter how acknowledgements are cut.
    heard_chunk_ack(data) {
      const { up } = this;
      const length = data.ChunkSize;
      if (!this.link.confirmed || this.complete || !(Number.isInteger(length) && length >= 0)) return;
      const acked = Math.min(up.bytes_acked + length, up.bytes_tx);
      if (this.rate) this.rate.add(acked - up.bytes_acked);
      up.bytes_acked = acked;
      while (this.unacked.length > 0 && this.unacked[0] <= acked) {
        this.unacked.shift();
        up.chunks_acked_now++;
      }
      this.attempt = 0;
      this.adopt_window(data);
      this.complete = acked === up.bytes_total;
      if (this.complete && !this.server_cancels) {
        // If we were about to cancel: the server had all before it heard of it, so it hands over.
        up.cancel_msg = null;
        clearTimeout(this.cancel_timer);
        this.stop_sending();
        this.enter('handover', 'handing file to app');
      } else {
        this.notify();
        this.pump();
      }
    }

    heard_cancel(reason) {
      this.server_cancels = true;
      this.link.send_cancel(reason);
      this.up.cancel_msg = plain(reason);
      this.begin_cancel();
    }

    heard_error(data) {
      const msg = plain(data.Msg);
      if (data.Msg === BUSY_MSG) {
        this.closed(0);
      } else if (this.up.state === 'cancelling') {
        // There is no upload any more, and that was the wish.
        this.cancelled();
      } else {
        this.failed(Number(data.ErrorCode) || 0, msg, `Upload failed on server side: ${msg}`);
      }
    }

    // -- sending

    pump() {
      const { up } = this;
      while (up.state === 'transferring' && this.may_send()) {
        const length = this.source.consume(this.chunk_bytes, (data) => this.link.ws.send(data));
        if (length === 0) return; // the source pumps as soon as it has something
        up.bytes_tx += length;
        up.chunks_tx_now++;
        this.unacked.push(up.bytes_tx);
        this.notify();
      }
    }

    // Acknowledgements drive the upload. The bound on what the socket buffers only matters where a
    // server has made its window smaller; then as well, the next acknowledgement goes on.
    may_send() {
      const ahead = this.unacked.length;
      const buffered_bytes_max = 2 * this.send_ahead * this.chunk_bytes;
      return (
        this.up.bytes_tx < this.up.bytes_total &&
        ahead < this.send_ahead &&
        (ahead === 0 || this.link.ws.bufferedAmount <= buffered_bytes_max)
      );
    }

    // The error's name only: its text is the browser's and may carry anything.
    read_failed(error) {
      const msg = `error on file load: ${error.name}`;
      Object.assign(this.up, { error_code: ERROR_FILE_READ, error_msg: msg, cancel_msg: msg });
      this.begin_cancel();
      this.emit('onerror');
    }

    // -- ends

    // Servers understand a cancellation once they have accepted the upload; before, it has to wait.
    begin_cancel() {
      this.stop_sending();
      if (this.link.confirmed) this.link.send_cancel(this.up.cancel_msg);
      clearTimeout(this.cancel_timer);
      const { link } = this;
      this.cancel_timer = setTimeout(() => link.give_up(), CANCEL_TIMEOUT_MS);
      this.enter('cancelling', `cancelling: ${this.up.cancel_msg}`);
    }

    cancelled() {
      this.cease();
      this.enter(this.up.error_code === null ? 'cancelled' : 'failed', `cancelled: ${this.up.cancel_msg}`);
      this.emit('oncancelled');
    }

    cancelled_unheard() {
      const { up } = this;
      this.cease();
      const request = { ...this.request, url: this.request.url || upload_url() };
      // Its first attempt too is outside of the page's call, which must not see it fail.
      setTimeout(() => tell_cancelled(request, up.cancel_msg, 0));
      if (up.error_code !== null) return this.cancelled();
      up.error_code = ERROR_CANCELLED_UNHEARD;
      up.error_msg = "upload is cancelled, but the backend doesn't know it yet";
      this.enter('cancelled', `cancelled: ${up.cancel_msg}`);
      this.emit('onerror');
      this.emit('oncancelled');
    }

    failed(code, msg, state_msg) {
      this.cease();
      Object.assign(this.up, { error_code: code, error_msg: msg, cancel_msg: msg });
      this.enter('failed', state_msg);
      this.emit('onerror');
      this.emit('oncancelled');
    }

    heard_all_done() {
      const { up } = this;
      // About another file, then: of this one there is something left to send.
      if (!this.link.confirmed || up.bytes_tx < up.bytes_total) return;
      this.complete = true;
      up.bytes_acked = up.bytes_tx = up.bytes_total;
      up.cancel_msg = null;
      this.cease();
      this.enter('finished', 'all done');
      this.emit('onfinished');
    }

    // Nothing is sent or awaited any more. The close event is still heard, for `connected`.
    cease() {
      clearTimeout(this.cancel_timer);
      this.stop_sending();
      this.unacked = [];
      this.up.bytes_tx = this.up.bytes_acked;
      if (this.link) {
        clearTimeout(this.link.timer);
        this.link.ws.close();
      }
    }

    // -- what the page sees

    enter(state, state_msg) {
      const { up, complete } = this;
      up.state = state;
      up.state_msg = state_msg;
      up.paused = state === 'paused';
      up.finished = state === 'finished';
      up.cancelling = state === 'cancelling';
      up.cancelled = state === 'cancelled' || state === 'failed';
      up.can_cancel = ['connecting', 'transferring', 'offline'].includes(state) && !complete;
      // Also while paused: pages disable with it the control that ends a pause.
      up.can_pause = state === 'paused' || (up.can_cancel && this.begun);
      this.notify();
    }

    notify() {
      const { up } = this;
      up.bytes_ahead = up.bytes_tx - up.bytes_acked;
      up.chunks_ahead = this.unacked.length;
      up.frac_complete = up.bytes_total > 0 ? up.bytes_acked / up.bytes_total : Number(this.complete);
      up.rate = this.rate ? this.rate.bytes_per_second() : 0;
      up.eta = up.rate > 0 ? (up.bytes_total - up.bytes_acked) / up.rate : null;
      this.emit('onprogress');
    }

    // A page's mistake is reported as any other of the page's mistakes, and the upload goes on.
    emit(name) {
      const callback = this.up[name];
      if (typeof callback !== 'function') return;
      try {
        callback.call(this.up, this.up);
      } catch (error) {
        setTimeout(() => {
          throw error;
        });
      }
    }
  }

  // Pages put messages into HTML. What others wrote becomes text without markup, of bounded length.
  function plain(text) {
    return String(text)
      .replace(/[<>&\u0000-\u001f]/g, ' ')
      .slice(0, 500);
  }

  // ---------------------------------------------------------------------------------------------
  // The library.

  let server_hostname = null;

  function upload_url() {
    const [, protocol, host] = /^(?:([a-z]+:)\/\/)?([^/]*)/i.exec(server_hostname || location.host);
    const insecure = ['http:', 'ws:'].includes((protocol || location.protocol).toLowerCase());
    return `${insecure ? 'ws' : 'wss'}://${host}${UPLOAD_PATH}`;
  }

  function Uploader(upload_id, file) {
    const up = Object.assign(Object.create(Uploader.prototype), {
      filename: file.name || '',
      bytes_total: file.size,
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
      start() {
        transfer.start();
        return up;
      },
      pause(what) {
        transfer.pause(what);
      },
      cancel(reason = '') {
        transfer.cancel(String(reason));
        return up;
      },
    });
    const transfer = new Transfer(up, upload_id, file);
    return up;
  }

  globalThis.incoming = {
    set_server_hostname(hostname) {
      server_hostname = hostname;
    },
    Uploader,
  };
})();
