// The web apps that come with the server, used as people use them. Each is started with a server of
// its own, at the real binary.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdirSync, mkdtempSync } from 'node:fs';
import { join } from 'node:path';
import { await_text, follow, held, with_page } from './page_tools.mjs';
import { binary_path, free_port, start_program } from './real_server.mjs';
import { start_proxy } from './tcp_proxy.mjs';

/** Starts an app, with a proxy between browser and server, and stops all when `act` is done. */
async function with_app(stage, name, start, act) {
  const dir = mkdtempSync(join(stage.dir, `${name}-`));
  const server_host = `127.0.0.1:${await free_port()}`;
  const page_host = `127.0.0.1:${await free_port()}`;
  const proxy = await start_proxy(server_host);
  const program = await start({ dir, server_host, page_host, proxy_host: proxy.host });
  try {
    await act({ ...stage, proxy, url: `http://${page_host}/` });
  } catch (error) {
    console.log(program.output().replace(/^/gm, '        | '));
    throw error;
  } finally {
    proxy.close();
    await program.stop();
  }
}

function with_example(stage, name, backend_options, act) {
  const start = ({ dir, server_host, page_host, proxy_host }) => {
    const options = ['--listen', page_host, '--incoming', server_host, '--dir', dir];
    const backend = ['--', '--public-incoming-host', proxy_host, ...backend_options];
    const env = { INCOMING_BIN: binary_path() };
    return start_program('examples/run', [name, ...options, ...backend], `http://${page_host}/`, env);
  };
  return with_app(stage, name, start, act);
}

function with_demo(stage, act) {
  const start = ({ dir, server_host, page_host }) => {
    mkdirSync(join(dir, 'storage'));
    const options = ['--listen', server_host, '--page', page_host, '--storage-dir', join(dir, 'storage')];
    return start_program(binary_path(), ['demo', ...options], `http://${page_host}/`);
  };
  return with_app(stage, 'demo', start, act);
}

/** What the app offers for download under this path is the file. */
async function assert_downloads(url, path, file) {
  const response = await fetch(new URL(path, url));
  assert.equal(response.status, 200);
  const hash = createHash('sha256');
  for await (const bytes of response.body) hash.update(bytes);
  assert.equal(hash.digest('hex'), file.sha256);
}

const links = (page, css) =>
  page.$$eval(css, (nodes) => nodes.map((node) => [node.textContent, node.getAttribute('href')]));

async function example_1(stage) {
  await with_example(stage, '1-simple', [], async ({ url, proxy, files }) => {
    for (const file of [files.unicode, files.large, files.empty]) {
      await with_page(stage, url, '#input_file', async (page, choose) => {
        if (file === files.large) await stage.screenshot(page, 'example-1');
        await choose(file);
        await page.waitForSelector('#output_finished:not([hidden])');
        await await_text(page, '#stats_state_msg', /^all done$/);
        assert.equal(await page.$eval('#stats_progress_bar', (bar) => bar.value), 1);
        if (file === files.large) await stage.screenshot(page, 'example-1-finished');
        await page.reload();
        const found = (await links(page, '#uploads a')).find(([text]) => text === file.name);
        assert.ok(found, `${file.name} is not in the list`);
        await assert_downloads(url, found[1], file);
      });
    }
    // Cut in the middle: it goes on by itself.
    await with_page(stage, url, '#input_file', async (page, choose) => {
      const state_msg = await follow(page, '#stats_state_msg');
      await held({ proxy }, 10, async () => {
        await choose(files.middle);
        await page.waitForFunction(() => document.querySelector('progress').value > 0.2);
        assert.equal(proxy.cut(), 1);
        await state_msg.next(/^lost connection, trying again in 1 s$/);
      });
      await page.waitForSelector('#output_finished:not([hidden])');
    });
    await assert_downloads(url, '/downloads/middle.bin', files.middle);
  });
}

async function example_2(stage) {
  await with_example(stage, '2-dynamic', ['--processing-s', '1'], async ({ url, proxy, files }) => {
    await with_page(stage, url, '#input_file_select', async (page, choose) => {
      const disabled = (css) => page.$eval(css, (element) => element.disabled);
      const state_msg = await follow(page, '#output_state_msg');
      await held({ proxy }, 5, async () => {
        await choose(files.middle);
        await state_msg.next(/^transfer file chunks/);
        await await_text(page, '#output_rate', /^[1-9]/);
        await stage.screenshot(page, 'example-2');
        await page.click('#input_pause');
        await state_msg.next(/^paused$/);
        assert.deepEqual([await disabled('#input_pause'), await disabled('#input_btn_cancel')], [false, true]);
        await page.click('#input_pause');
        await state_msg.next(/^transfer file chunks/);
        assert.ok(proxy.cut() >= 1);
        await state_msg.next(/^lost connection/);
      });
      await await_text(page, '#output_finished', /^true$/);
      await await_text(page, '#uploads', /middle\.bin/);
      assert.equal(await page.$eval('#output_error_msg', (node) => node.textContent), '');
      // Others on the same page: one that is cancelled, and one with a name of all sorts.
      await held({ proxy }, 5, async () => {
        await choose(files.large);
        await state_msg.next(/^transfer file chunks/);
        await page.click('#input_btn_cancel');
        await state_msg.next(/^cancelling/);
      });
      await await_text(page, '#output_cancelled', /^true$/);
      await await_text(page, '#output_state_msg', /^cancelled: user cancelled manually$/);
      // And the large one once more, to its end.
      for (const file of [files.unicode, files.large]) {
        await choose(file);
        await page.waitForFunction(
          (name) => document.querySelector('#uploads').textContent.includes(name), {}, file.name);
      }
      await stage.screenshot(page, 'example-2-finished');
      const found = new Map(await links(page, '#uploads a'));
      const uploaded = [files.middle, files.unicode, files.large];
      assert.deepEqual([...found.keys()].sort(), uploaded.map((file) => file.name).sort());
      for (const file of uploaded) await assert_downloads(url, found.get(file.name), file);
    });
  });
}

async function demo(stage) {
  await with_demo(stage, async ({ url, proxy, files }) => {
    await with_page(stage, url, '#picker', async (page, choose) => {
      await stage.screenshot(page, 'demo-empty');
      await page.evaluate((host) => incoming.set_server_hostname(host), proxy.host);
      const row = (file) => `.upload[data-name=${JSON.stringify(file.name)}]`;
      const await_state = (file, state) =>
        page.waitForSelector(`${row(file)}[data-state="${state}"]`);
      await held({ proxy }, 6, async () => {
        await choose(files.middle, files.large, files.other, files.empty, files.unicode);
        const middle = await follow(page, row(files.middle), 'data-state');
        const large = await follow(page, row(files.large), 'data-state');
        for (const file of [files.other, files.empty, files.unicode]) await await_state(file, 'finished');
        await middle.next(/^transferring$/);
        await page.click(`${row(files.middle)} .pause`);
        await middle.next(/^paused$/);
        await stage.screenshot(page, 'demo');
        await page.click(`${row(files.middle)} .pause`);
        await middle.next(/^transferring$/);
        await large.next(/^transferring$/);
        assert.ok(proxy.cut() >= 2);
        await middle.next(/^offline$/);
        await large.next(/^offline$/);
        await large.next(/^transferring$/);
        await page.click(`${row(files.large)} .cancel`);
        await large.next(/^cancelling$/);
      });
      await await_state(files.large, 'cancelled');
      await await_state(files.middle, 'finished');
      await page.waitForSelector('#files[data-count="4"]');
      await stage.screenshot(page, 'demo-finished');
      for (const file of [files.middle, files.other, files.empty, files.unicode]) {
        const css = `.file[data-name=${JSON.stringify(file.name)}]`;
        assert.equal(await page.$eval(css, (node) => node.dataset.bytes), String(file.length));
        await assert_downloads(url, await page.$eval(`${css} a`, (node) => node.getAttribute('href')), file);
      }
      await choose(files.large);
      await page.waitForSelector('#files[data-count="5"]');
      await assert_downloads(url, 'files/large.bin', files.large);
    });
  });
}

export const APP_SCENARIOS = [example_1, example_2, demo];
