// Starts the real binary and waits until it answers.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import net from 'node:net';
import { fileURLToPath } from 'node:url';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const START_TIMEOUT_MS = 120_000;

/** The binary to test. Throws with the remedy when there is none. */
export function binary_path() {
  const path = process.env.INCOMING_BIN || `${ROOT}target/debug/incoming`;
  if (!existsSync(path)) throw new Error(`missing: ${path}. Build it with: cargo build`);
  return path;
}

/** A port of loopback that nobody listens on. */
export async function free_port() {
  const server = net.createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address();
  server.close();
  await once(server, 'close');
  return port;
}

/** Starts a program and resolves when `url` answers; its output is shown when it does not. */
export async function start_program(command, args, url, env = {}) {
  // INCOMING_* is the server's own configuration, of which nothing may get in from around the tests.
  const around = Object.entries(process.env).filter(([name]) => !name.startsWith('INCOMING_'));
  const all_env = { ...Object.fromEntries(around), ...env };
  // A process group of its own, because a script's children have to end with it.
  const child = spawn(command, args, { cwd: ROOT, env: all_env, detached: true });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (text) => (output += text));
  let ended = false;
  child.on('error', (error) => {
    output += error.message;
    ended = true;
  });
  const end = new Promise((resolve) => child.on('exit', resolve)).then(() => (ended = true));
  const stop = async () => {
    if (ended) return;
    process.kill(-child.pid, 'SIGTERM');
    const timer = setTimeout(() => process.kill(-child.pid, 'SIGKILL'), 10_000);
    await end;
    clearTimeout(timer);
  };
  for (const start_ms = Date.now(); ; ) {
    const answer = await fetch(url).catch(() => null);
    if (answer && answer.ok) return { stop, output: () => output, ended: () => ended };
    if (ended || Date.now() - start_ms > START_TIMEOUT_MS) {
      await stop();
      throw new Error(`${command} ${args.join(' ')} did not start:\n${output}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

export async function start_real_server(storage_dir) {
  const host = `127.0.0.1:${await free_port()}`;
  const args = ['serve', '--listen', host, '--storage-dir', storage_dir];
  const program = await start_program(binary_path(), args, `http://${host}/incoming/0.1/health`);
  return { host, ...program };
}
