// What is tried in each browser. A scenario gets the stage that run.mjs has set up: `browser`, the
// web apps with their server behind a proxy, files with their SHA-256, and a place for screenshots.

import assert from 'node:assert/strict';
import { copyFileSync, truncateSync } from 'node:fs';
import { await_text, follow, held, with_library, with_page } from './page_tools.mjs';

/** The web app has this file, as it was. */
async function assert_arrived(app, id, file) {
  const handover = await app.handover(id);
  assert.equal(handover.cancelled, 'no');
  assert.equal(handover.filenameFromBrowser, file.name);
  assert.equal(handover.sha256, file.sha256);
}

function assert_finished(up, file) {
  assert.equal(up.finished, true);
  assert.equal(up.frac_complete, 1);
  assert.equal(up.bytes_acked, file.length);
  assert.equal(up.error_code, null);
  assert.equal(up.calls.filter((call) => call === 'onfinished').length, 1);
}

async function upload(stage) {
  const { app, files } = stage;
  const id = await app.new_ticket();
  await with_library(stage, [files.large], async ({ begin, until }) => {
    await begin(0, id);
    assert_finished(await until(0, 'up.finished && !up.connected'), files.large);
    await assert_arrived(app, id, files.large);
  });
}

async function empty_file_and_names(stage) {
  const { app, files } = stage;
  const names = [files.empty, files.unicode];
  await with_library(stage, names, async ({ begin, until }) => {
    for (const [index, file] of names.entries()) {
      const id = await app.new_ticket();
      await begin(index, id);
      assert_finished(await until(index, 'up.finished && !up.connected'), file);
      await assert_arrived(app, id, file);
    }
  });
}

async function two_at_once(stage) {
  const { app, files } = stage;
  const both = [files.middle, files.other];
  await with_library(stage, both, async ({ begin, until, look }) => {
    const ids = [await app.new_ticket(), await app.new_ticket()];
    await held(stage, 2, async () => {
      for (const index of both.keys()) await begin(index, ids[index]);
      for (const index of both.keys()) await until(index, 'up.bytes_acked > 0');
      for (const index of both.keys()) assert.equal((await look(index)).state, 'transferring');
    });
    for (const [index, file] of both.entries()) {
      assert_finished(await until(index, 'up.finished && !up.connected'), file);
      await assert_arrived(app, ids[index], file);
    }
  });
}

async function pause_and_resume(stage) {
  const { app, files, proxy } = stage;
  await with_library(stage, [files.middle], async ({ begin, until, entered, tell, look }) => {
    const id = await app.new_ticket();
    await held(stage, 5, async () => {
      await begin(0, id);
      await until(0, 'up.bytes_acked > 3e6');
      await tell(0, 'pause', 'pause');
      const paused = await look(0);
      assert.equal(paused.paused, true);
      assert.equal(paused.can_pause, true);
      assert.equal(paused.can_cancel, false);
      // What was under way arrives, and is of no interest to the page.
      const [older] = proxy.uploads();
      older.release();
      await older.over;
      assert.equal((await look(0)).bytes_acked, paused.bytes_acked);
      await entered(0, 'paused');
      await tell(0, 'pause', 'unpause');
      assert.equal((await entered(0, 'connecting')).bytes_acked, paused.bytes_acked);
      assert.ok((await entered(0, 'transferring')).bytes_acked >= paused.bytes_acked);
      // As fast as a page can: nothing of an older connection may disturb the newer one.
      for (let i = 0; i < 4; i++) await tell(0, 'pause', 'toggle');
    });
    assert_finished(await until(0, 'up.finished && !up.connected'), files.middle);
    await assert_arrived(app, id, files.middle);
  });
}

async function cancel_from_page(stage) {
  const { app, files } = stage;
  await with_library(stage, [files.middle], async ({ begin, until, tell, look }) => {
    const id = await app.new_ticket();
    await held(stage, 5, async () => {
      await begin(0, id);
      await until(0, 'up.bytes_acked > 1e6');
      await tell(0, 'cancel', 'changed my mind');
      const cancelling = await look(0);
      assert.deepEqual([cancelling.cancelling, cancelling.cancelled], [true, false]);
    });
    const up = await until(0, 'up.cancelled && !up.connected');
    assert.equal(up.state, 'cancelled');
    assert.equal(up.cancelling, false);
    assert.equal(up.cancel_msg, 'changed my mind');
    assert.equal(up.error_code, null);
    assert.ok(up.calls.includes('oncancelled'));
    const handover = await app.handover(id);
    assert.equal(handover.cancelled, 'yes');
    assert.equal(handover.cancelReason, 'changed my mind');
  });
}

async function cancel_by_backend(stage) {
  const { app, files } = stage;
  await with_library(stage, [files.middle], async ({ begin, until }) => {
    const id = await app.new_ticket();
    await held(stage, 5, async () => {
      await begin(0, id);
      await until(0, 'up.bytes_acked > 1e6');
      assert.equal(await app.cancel(id), 'ok');
    });
    const up = await until(0, 'up.cancelled && !up.connected');
    assert.equal(up.cancelling, false);
    assert.equal(up.can_cancel, false);
    assert.ok(up.calls.includes('oncancelled'));
    // Servers of the first version can only say it as an error.
    assert.equal(up.state, stage.first_version ? 'failed' : 'cancelled');
    if (!stage.first_version) assert.equal(up.error_code, null);
    assert.equal(app.handovers.has(id), false);
  });
}

async function cut_and_resume(stage) {
  const { app, files, proxy } = stage;
  await with_library(stage, [files.middle], async ({ begin, until, entered }) => {
    const id = await app.new_ticket();
    await held(stage, 5, async () => {
      await begin(0, id);
      let acked_bytes = 0;
      for (let i = 0; i < 2; i++) {
        const begun = await entered(0, 'transferring');
        assert.ok(begun.bytes_acked >= acked_bytes, `${begun.bytes_acked}`);
        await until(0, `up.bytes_acked > ${begun.bytes_acked + 2e6}`);
        assert.equal(proxy.cut(), 1);
        const lost = await entered(0, 'offline');
        assert.equal(lost.connected, false);
        assert.equal(lost.error_code, null);
        acked_bytes = lost.bytes_acked;
      }
    });
    const up = await until(0, 'up.finished && !up.connected');
    assert_finished(up, files.middle);
    assert.equal(up.calls.filter((call) => call === 'offline').length, 2);
    await assert_arrived(app, id, files.middle);
  });
}

async function cut_in_handover(stage) {
  const { wait_app, files, proxy } = stage;
  const id = await wait_app.new_ticket();
  await with_library(stage, [files.other], async ({ begin, until, entered }) => {
    await begin(0, id);
    await entered(0, 'handover');
    assert.equal(proxy.cut(), 1);
    await entered(0, 'offline');
    await entered(0, 'handover');
    await wait_app.finish(id);
    assert_finished(await until(0, 'up.finished && !up.connected'), files.other);
    await assert_arrived(wait_app, id, files.other);
  });
}

async function reload_and_resume(stage) {
  const { app, files } = stage;
  const id = await app.new_ticket();
  await held(stage, 8, () =>
    with_library(stage, [files.middle], async ({ begin, until }) => {
      await begin(0, id);
      await until(0, 'up.bytes_acked > 5e6');
    }),
  );
  await with_library(stage, [files.middle], async ({ begin, until, entered }) => {
    await begin(0, id);
    const resumed = await entered(0, 'transferring');
    assert.ok(resumed.bytes_acked >= 5e6, `${resumed.bytes_acked}`);
    assert_finished(await until(0, 'up.finished && !up.connected'), files.middle);
  });
  await assert_arrived(app, id, files.middle);
}

async function file_that_shrinks(stage) {
  const { app, files } = stage;
  const id = await app.new_ticket();
  const file = { path: `${files.middle.path}-${stage.server_kind}-${stage.browser_name}` };
  copyFileSync(files.middle.path, file.path);
  await with_library(stage, [file], async ({ begin, until }) => {
    await held(stage, 5, async () => {
      await begin(0, id);
      await until(0, 'up.bytes_acked > 3e6');
      truncateSync(file.path, 5);
    });
    const up = await until(0, 'up.cancelled && !up.connected');
    assert.equal(up.state, 'failed');
    assert.equal(up.error_code, 500);
    assert.match(up.error_msg, /^error on file load: \w+$/);
    assert.deepEqual([up.calls.includes('onerror'), up.calls.includes('oncancelled')], [true, true]);
    assert.equal((await app.handover(id)).cancelReason, up.error_msg);
  });
}

async function taken_over(stage) {
  const { app, files, proxy } = stage;
  const id = await app.new_ticket();
  await with_library(stage, [files.middle], async (first) => {
    await held(stage, 6, async () => {
      await first.begin(0, id);
      await first.until(0, 'up.bytes_acked > 2e6');
      const [older] = proxy.uploads();
      await first.entered(0, 'transferring');
      await with_library(stage, [files.middle], async (second) => {
        await second.begin(0, id);
        const begun = await second.entered(0, 'transferring');
        // What the first one had under way arrives now, too late.
        older.release();
        assert.equal((await first.entered(0, 'taken_over')).cancelled, false);
        const winner = await second.until(0, `up.bytes_acked > ${begun.bytes_acked + 2e6}`);
        assert.ok(winner.bytes_acked < files.middle.length);
        // And back again.
        await first.tell(0, 'start');
        await first.entered(0, 'transferring');
        proxy.release();
        await second.entered(0, 'taken_over');
      });
    });
    assert_finished(await first.until(0, 'up.finished && !up.connected'), files.middle);
    await assert_arrived(app, id, files.middle);
  });
}

async function as_a_module(stage) {
  const { app, files } = stage;
  const url = `http://${app.host}/module`;
  await with_page(stage, url, '#file', async (page, choose) => {
    await page.waitForFunction(() => window.same === true);
    await choose(files.other);
    await page.waitForFunction(() => window.uploader?.finished, { polling: 20 });
    await assert_arrived(app, app.last_ticket(), files.other);
  });
}

async function first_page_simple(stage) {
  const { old_app, files } = stage;
  const url = `http://${old_app.host}/seed1`;
  await with_page(stage, url, '#input_file', async (page, choose) => {
    await choose(files.middle);
    await old_app.finish(old_app.last_ticket());
    await await_text(page, '#output_finished', /Upload is finished/);
    await await_text(page, '#stats_state_msg', /^all done$/);
    assert.equal(await page.$eval('#stats_progress_bar', (bar) => bar.value), 1);
    assert.equal(await page.$eval('#input_file', (input) => input.disabled), true);
    await stage.screenshot(page, 'first-page-simple');
    await assert_arrived(old_app, old_app.last_ticket(), files.middle);
  });
}

async function first_page_dynamic(stage) {
  const { old_app, files, proxy } = stage;
  const url = `http://${old_app.host}/seed2`;
  await with_page(stage, url, '#input_file_select', async (page, choose) => {
    const disabled = (css) => page.$eval(css, (element) => element.disabled);
    const state_msg = await follow(page, '#output_state_msg');
    await held(stage, 5, async () => {
      await choose(files.middle);
      await state_msg.next(/^transfer file chunks/);
      await await_text(page, '#output_chunks_acked', /^[1-9]/);
      assert.equal(await page.$eval('#output_error_msg', (node) => node.textContent), '');
      await page.click('#input_pause');
      await state_msg.next(/^paused$/);
      assert.equal(await disabled('#input_pause'), false);
      assert.equal(await disabled('#input_btn_cancel'), true);
      await stage.screenshot(page, 'first-page-dynamic-paused');
      // Servers of the first version take no second connection before the first one has ended.
      proxy.release();
      await page.click('#input_pause');
      await state_msg.next(/^transfer file chunks/);
    });
    await state_msg.next(/^(handing file to app|processing file on server)$/);
    await old_app.finish(old_app.last_ticket());
    await state_msg.next(/^all done$/);
    await assert_arrived(old_app, old_app.last_ticket(), files.middle);
    // Another one on the same page, which is cancelled.
    assert.equal(await disabled('#input_file_select'), false);
    await held(stage, 5, async () => {
      await choose(files.large);
      await state_msg.next(/^transfer file chunks/);
      await page.click('#input_btn_cancel');
      await state_msg.next(/^cancelling/);
    });
    await await_text(page, '#output_cancelled', /^true$/);
    await await_text(page, '#output_cancel_msg', /^user cancelled manually$/);
    await await_text(page, '#output_cancelling', /^false$/);
    assert.equal((await old_app.handover(old_app.last_ticket())).cancelReason, 'user cancelled manually');
  });
}

export const SCENARIOS = [
  upload,
  empty_file_and_names,
  two_at_once,
  pause_and_resume,
  cancel_from_page,
  cancel_by_backend,
  cut_and_resume,
  cut_in_handover,
  reload_and_resume,
  file_that_shrinks,
  as_a_module,
  first_page_simple,
  first_page_dynamic,
];

/** Need what the first version does not have. */
export const SCENARIOS_OF_TODAY = [taken_over];
