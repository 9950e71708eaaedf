// What scenarios do with pages.

import assert from 'node:assert/strict';

const MIB = 1024 * 1024;

// Firefox reports lost connections in the same way as errors of the page.
const CONNECTION_LOST = /^Firefox can.t establish a connection|^The connection to ws.* was interrupted/;

/** Opens a page, lets `act` choose files in its file input, and closes it afterwards. */
export async function with_page(stage, url, input, act) {
  const page = await stage.browser.newPage();
  page.setDefaultTimeout(stage.wait_ms);
  const complaints = [];
  page.on('pageerror', (error) => {
    if (!CONNECTION_LOST.test(error.message)) complaints.push(error.message);
  });
  page.on('dialog', async (dialog) => {
    complaints.push(`dialog: ${dialog.message()}`);
    await dialog.dismiss();
  });
  try {
    await page.goto(url);
    // Choosing the same file twice would be no change.
    const choose = async (...chosen) => {
      const element = await page.waitForSelector(input);
      await element.uploadFile(...chosen.map((file) => file.path));
      await element.dispose();
    };
    await act(page, choose);
    assert.deepEqual(complaints, []);
  } finally {
    await page.close();
  }
}

/** A page on which scenarios drive the library themselves, and what they ask it for. */
export async function with_library(stage, files, act) {
  await with_page(stage, `http://${stage.app.host}/plain`, '#files', async (page, choose) => {
    await choose(...files);
    const moment_counts = files.map(() => 0); // of each upload, how many were awaited
    const look = (index) => page.evaluate((i) => ({ ...look(i), calls: calls[i] }), index);
    const wait = async (index, what, ...condition) => {
      try {
        return await (await page.waitForFunction(...condition)).jsonValue();
      } catch (error) {
        throw new Error(`${what} did not come: ${JSON.stringify(await look(index))}`, { cause: error });
      }
    };
    await act({
      page,
      look,
      async begin(index, id) {
        await page.evaluate((i, ticket) => begin(i, ticket), index, id);
      },
      tell: (index, method, argument) =>
        page.evaluate((i, name, value) => void uploads[i][name](value), index, method, argument),
      /**
       * Waits until `condition`, an expression about `up`, is true, and looks. It has to be one that
       * stays true: what passes again may have passed before it is looked at.
       */
      async until(index, condition) {
        const body = `const up = uploads[${index}]; return ${condition};`;
        await wait(index, condition, new Function(body), { polling: 20 });
        return look(index);
      },
      /** Waits until the upload has come into a state since what was awaited here last: as it was then. */
      async entered(index, state) {
        const find = (i, wanted, from) => {
          const at = moments[i].findIndex((moment, n) => n >= from && moment.state === wanted);
          return at >= 0 && { at, moment: moments[i][at] };
        };
        const found = await wait(index, state, find, { polling: 20 }, index, state, moment_counts[index]);
        moment_counts[index] = found.at + 1;
        return found.moment;
      },
    });
  });
}

/** Each connection's upload stops after so many MiB until `act` is done, so that it has a middle. */
export async function held(stage, mib, act) {
  stage.proxy.hold_after_bytes = mib * MIB;
  try {
    await act();
  } finally {
    stage.proxy.hold_after_bytes = Infinity;
    stage.proxy.release();
  }
}

/**
 * Records what an element shows from now on: its text, or an attribute. `next` waits until it has
 * shown what matches since what was awaited last, so nothing is missed that was there for a moment.
 */
export async function follow(page, selector, attribute = null) {
  const record = (css, name) => {
    const element = document.querySelector(css);
    const shown = [];
    const note = (text) => {
      if (shown.at(-1) !== text) shown.push(text);
    };
    const note_now = () => note(name ? element.getAttribute(name) : element.textContent);
    const observer = new MutationObserver((records) => {
      for (const { type, addedNodes, oldValue } of records) {
        if (type === 'childList') for (const node of addedNodes) note(node.textContent);
        else note(oldValue);
      }
      note_now();
    });
    const of_text = { childList: true, characterData: true, characterDataOldValue: true, subtree: true };
    observer.observe(element, name ? { attributeFilter: [name], attributeOldValue: true } : of_text);
    note_now();
    window.followed ||= [];
    return window.followed.push(shown) - 1;
  };
  const find = (key, from, source) =>
    window.followed[key].findIndex((text, at) => at >= from && new RegExp(source).test(text)) + 1;
  const key = await page.evaluate(record, selector, attribute);
  let seen_count = 0;
  return {
    async next(pattern) {
      try {
        const found = await page.waitForFunction(find, { polling: 20 }, key, seen_count, pattern.source);
        seen_count = await found.jsonValue();
      } catch (error) {
        const shown = await page.evaluate((it) => window.followed[it], key);
        const since = JSON.stringify(shown.slice(seen_count));
        throw new Error(`${selector} has shown ${since}, not ${pattern}`, { cause: error });
      }
    },
  };
}

/** The text of an element, when it is what it should be. */
export async function await_text(page, selector, pattern) {
  const matches = (css, source) => new RegExp(source).test(document.querySelector(css)?.textContent || '');
  try {
    await page.waitForFunction(matches, { polling: 20 }, selector, pattern.source);
  } catch (error) {
    const text = await page.evaluate((css) => document.querySelector(css)?.textContent, selector);
    throw new Error(`${selector} is '${text}', not ${pattern}`, { cause: error });
  }
}
