// Types of incoming.js. As a module: `import incoming from '@incoming-upload/client'`. As a classic
// script: the global `incoming` has the same shape.

/**
 * Where an upload stands. The flags of an uploader follow from it.
 *
 * - `new`: not started
 * - `connecting`: to the server, which may also mean the server's answer to our request
 * - `transferring`: bytes are being sent
 * - `paused`: by `pause()`
 * - `offline`: the connection is lost; the library tries again by itself
 * - `handover`: the server has every byte and hands the file over to the web app
 * - `finished`: the web app has the file
 * - `cancelling`: the server is about to confirm the cancellation
 * - `cancelled`
 * - `failed`: see `error_code` and `error_msg`; `cancelled` is true as well
 * - `taken_over`: another connection, for example of another tab, goes on with this upload. Call
 *   `start()` to get it back.
 */
export type State =
  | 'new'
  | 'connecting'
  | 'transferring'
  | 'paused'
  | 'offline'
  | 'handover'
  | 'finished'
  | 'cancelling'
  | 'cancelled'
  | 'failed'
  | 'taken_over';

export type Callback = (uploader: Uploader) => void;

/** One upload of one file. Properties are for reading, callbacks for setting. */
export interface Uploader {
  /** Name of the file, without a path. */
  readonly filename: string;
  /** Length of the file. */
  readonly bytes_total: number;
  /** Bytes that have been sent. Falls back to `bytes_acked` when the connection is lost. */
  readonly bytes_tx: number;
  /** Bytes that the server has confirmed. Lower after a reconnect if the server lost some. */
  readonly bytes_acked: number;
  /** `bytes_tx - bytes_acked`. */
  readonly bytes_ahead: number;
  /** 0 to 1, by `bytes_acked`. At 1 the file is at the server, not yet at the web app. */
  readonly frac_complete: number;
  /** Messages with file data sent on the current connection. */
  readonly chunks_tx_now: number;
  /** Of these, the confirmed ones. */
  readonly chunks_acked_now: number;
  /** Of these, the ones that are under way. */
  readonly chunks_ahead: number;
  /** Bytes per second over the last few seconds while transferring, else 0. */
  readonly rate: number;
  /** Seconds until all bytes will have arrived, at this rate; null when nobody knows. */
  readonly eta: number | null;

  readonly state: State;
  /** The state in words, plain text without markup (but for what you gave to `cancel()`). */
  readonly state_msg: string;
  /** Why the upload is being or has been cancelled. */
  readonly cancel_msg: string | null;
  /**
   * A number when an error has occurred. 1xx: the conversation; 2xx: the server's storage; 3xx: the
   * ticket; 4xx: handing over to the web app; 5xx: here (500: the file could not be read; 501:
   * cancelled while not connected, the server is being told in the background; 502: no connection
   * can be made from this page). 0: a server that has no error codes.
   */
  readonly error_code: number | null;
  readonly error_msg: string | null;

  readonly connected: boolean;
  readonly finished: boolean;
  readonly paused: boolean;
  /** True also while paused, so that it can enable a control that does both. */
  readonly can_pause: boolean;
  readonly cancelling: boolean;
  readonly cancelled: boolean;
  readonly can_cancel: boolean;

  /** Called whenever one or several properties have changed. */
  onprogress: Callback | null;
  /** Called after `onprogress` when the web app has the file. */
  onfinished: Callback | null;
  /** Called after `onprogress` when `cancelled` has become true. */
  oncancelled: Callback | null;
  /** Called after `onprogress` when `error_code` has been set. */
  onerror: Callback | null;

  /** Starts; also goes on when paused, offline (at once, without waiting) or taken over. */
  start(): this;
  /** Without effect where it makes no sense, for example during handover. */
  pause(what: 'pause' | 'unpause' | 'toggle'): void;
  /** Without effect unless `can_cancel`. */
  cancel(reason?: string): this;
}

export interface UploaderConstructor {
  /** `upload_id` is the ticket that your backend got from the server. `new` is optional. */
  (upload_id: string, file: File): Uploader;
  new (upload_id: string, file: File): Uploader;
}

export interface Incoming {
  /**
   * Names the upload server: `host`, `host:port`, or a whole origin such as `https://host:port`.
   * Unless called, it is the page's own host. Call it before the first upload starts.
   */
  set_server_hostname(hostname: string): void;
  Uploader: UploaderConstructor;
}

export const set_server_hostname: Incoming['set_server_hostname'];
export const Uploader: UploaderConstructor;
declare const incoming: Incoming;
export default incoming;

declare global {
  var incoming: Incoming;
}
