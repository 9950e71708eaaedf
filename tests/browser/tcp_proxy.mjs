// A TCP proxy between browser and server: holds uploads in their middle and cuts connections.

import { once } from 'node:events';
import net from 'node:net';

// While an upload is held, one of its bytes goes on so often: a server that hears nothing at all
// would believe, after a while, that the browser is gone.
const SIGN_OF_LIFE_MS = 5000;

const UPLOAD_PATH = '/frontend/upload_ws';

/** A connection of the browser, and the one that it is forwarded to. */
class Connection {
  constructor(client, upstream, hold_after_bytes) {
    this.client = client;
    this.upstream = upstream;
    this.left_bytes = hold_after_bytes; // that may be forwarded before it is held
    this.is_upload = false;
    this.wake = () => {}; // ends the wait of a held one
    this.over = Promise.all([client, upstream].map((it) => new Promise((ended) => it.on('close', ended))));
    for (const socket of [client, upstream]) {
      socket.setNoDelay(true);
      socket.on('error', () => {});
      socket.on('close', (had_error) => {
        if (had_error) this.destroy();
        this.wake();
      });
    }
    upstream.pipe(client);
    client.on('data', (bytes) => this.forward(bytes));
    client.on('end', () => upstream.end());
  }

  async forward(bytes) {
    this.is_upload ||= bytes.includes(UPLOAD_PATH);
    this.client.pause();
    for (let sent = 0; sent < bytes.length && !this.upstream.destroyed; ) {
      if (this.left_bytes <= 0) await this.sign_of_life();
      const piece = bytes.subarray(sent, sent + Math.max(this.left_bytes, 1));
      sent += piece.length;
      this.left_bytes -= piece.length;
      await new Promise((done) => this.upstream.write(piece, done));
    }
    this.client.resume();
  }

  sign_of_life() {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, SIGN_OF_LIFE_MS);
      this.wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  /** What is held goes on, and is not held again. */
  release() {
    this.left_bytes = Infinity;
    this.wake();
  }

  destroy() {
    for (const socket of [this.client, this.upstream]) socket.resetAndDestroy();
  }
}

/** Forwards from a port of its own to `host:port`. Close it when done. */
export async function start_proxy(target) {
  const [host, port] = target.split(':');
  const present = new Set();
  // One side may have said its last while the other still speaks.
  const server = net.createServer({ allowHalfOpen: true }, (client) => {
    const upstream = net.connect({ host, port: Number(port), allowHalfOpen: true });
    const connection = new Connection(client, upstream, proxy.hold_after_bytes);
    present.add(connection);
    connection.over.then(() => present.delete(connection));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');

  const proxy = {
    host: `127.0.0.1:${server.address().port}`,
    /** A connection that is opened from now on is held when it has brought so many bytes. */
    hold_after_bytes: Infinity,
    /** The connections that carry an upload, oldest first. `over` resolves when one has ended. */
    uploads: () => [...present].filter((connection) => connection.is_upload),
    /** Releases every connection that is there. */
    release() {
      for (const connection of present) connection.release();
    },
    /** Breaks every connection with RST, as a network does that has gone away. Returns how many uploads. */
    cut() {
      const count = proxy.uploads().length;
      for (const connection of present) connection.destroy();
      return count;
    },
    close() {
      proxy.cut();
      server.close();
    },
  };
  return proxy;
}
