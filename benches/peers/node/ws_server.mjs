// The upload server that one would write with ws: each binary message is written, then acknowledged.
// Usage: node ws_server.mjs PORT DIRECTORY
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { WebSocketServer } from 'ws';

const [port, directory] = process.argv.slice(2);
const server = new WebSocketServer({ host: '127.0.0.1', port: Number(port) });
server.on('connection', (socket) => {
    const upload = new Upload(socket);
    // One message after the other: a write is awaited.
    let last = Promise.resolve();
    socket.on('message', (data, isBinary) => {
        last = last.then(() => upload.take(data, isBinary)).catch((error) => {
            console.error(error);
            socket.terminate();
        });
    });
    socket.on('error', (error) => console.error(error));
    socket.on('close', () => {
        last = last.then(() => upload.file?.close());
    });
});

class Upload {
    file = null;
    lengthBytes = 0;
    receivedBytes = 0;

    constructor(socket) {
        this.socket = socket;
    }

    async take(data, isBinary) {
        if (isBinary) {
            await this.file.writeFile(data);
            this.receivedBytes += data.length;
            this.say('MsgChunkAck', { ChunkSize: data.length });
            this.finishWhenWhole();
            return;
        }
        const { MsgType: kind, MsgData: message } = JSON.parse(data);
        if (kind === 'MsgUploadReq') {
            if (!/^[A-Za-z0-9-]+$/.test(message.Id)) throw new Error('the id is no file name');
            this.file = await open(join(directory, message.Id), 'w');
            this.lengthBytes = message.LengthBytes;
            this.say('MsgUploadConf', { ChunkSizeKB: 1024, FilePos: 0, SendAhead: 2 });
        } else if (kind === 'MsgAck') {
            this.finishWhenWhole();
        }
    }

    finishWhenWhole() {
        if (this.receivedBytes === this.lengthBytes) this.say('MsgAllDone', { Success: true });
    }

    say(kind, message) {
        this.socket.send(JSON.stringify({ MsgType: kind, MsgData: message }));
    }
}
