// The library for pages that use modules. incoming.js is the only implementation; it is a classic
// script and defines the global `incoming`.
import './incoming.js';

export const { set_server_hostname, Uploader } = globalThis.incoming;
export default globalThis.incoming;
