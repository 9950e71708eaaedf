// A TCP proxy between browser and server: slows uploads down and cuts connections.

import { once } from 'node:events';
import net from 'node:net';

/** Forwards from a port of its own to `host:port`. Close it when done. */
export async function start_proxy(target) {
  const [host, port] = target.split(':');
  const pairs = new Set();
  const proxy = { bytes_per_second: Infinity, connections: 0 };

  // One side may have said its last while the other still speaks.
  const server = net.createServer({ allowHalfOpen: true }, (client) => {
    const upstream = net.connect({ host, port: Number(port), allowHalfOpen: true });
    const pair = [client, upstream];
    pairs.add(pair);
    proxy.connections++;
    for (const socket of pair) {
      socket.setNoDelay(true);
      socket.on('error', () => {});
      socket.on('close', (had_error) => {
        if (had_error) for (const other of pair) other.destroy();
        if (pair.every((it) => it.destroyed)) pairs.delete(pair);
      });
    }
    upstream.pipe(client);
    client.on('data', (bytes) => {
      const delay_ms = (bytes.length / proxy.bytes_per_second) * 1000;
      client.pause();
      upstream.write(bytes, () => {
        if (delay_ms > 0) setTimeout(() => client.resume(), delay_ms);
        else client.resume();
      });
    });
    client.on('end', () => upstream.end());
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');

  return Object.assign(proxy, {
    host: `127.0.0.1:${server.address().port}`,
    /** Breaks every connection with RST, as a network does that has gone away. Returns how many. */
    cut() {
      const count = pairs.size;
      for (const pair of pairs) for (const socket of pair) socket.resetAndDestroy();
      return count;
    },
    close() {
      proxy.cut();
      server.close();
    },
  });
}
