//! `peers naive`: the same messages on tokio, tokio-tungstenite and tokio's files, as one would
//! write them on a first afternoon, with the defaults of all three.

use std::error::Error;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::{SinkExt, StreamExt};
use incoming::dialect::message::{ClientMessage, UploadRequest};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Naive {
    /// Where clients connect; port 0 is any free one. The first line printed tells the address
    #[arg(long)]
    listen: SocketAddr,
    /// Where files are stored, each under the id of its upload
    #[arg(long)]
    directory: PathBuf,
}

impl Naive {
    /// Runs until the process ends.
    pub(crate) fn run(self) -> io::Result<()> {
        tokio::runtime::Runtime::new()?.block_on(async {
            let listener = TcpListener::bind(self.listen).await?;
            println!("listening on http://{}", listener.local_addr()?);
            io::stdout().flush()?;
            let directory: Arc<Path> = self.directory.into();
            loop {
                let (stream, peer) = listener.accept().await?;
                let directory = directory.clone();
                tokio::spawn(async move {
                    if let Err(error) = receive(stream, &directory).await {
                        eprintln!("{peer}: {error}");
                    }
                });
            }
        })
    }
}

/// One upload. Acknowledged is what the page cache has.
async fn receive(stream: TcpStream, directory: &Path) -> Result<(), Box<dyn Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    let mut socket = tokio_tungstenite::accept_async(stream).await?;
    let UploadRequest { id, length_bytes, .. } =
        hear(&mut socket).await?.upload_request().ok_or("MsgUploadReq is expected")?;
    if !id.chars().all(|it| it.is_ascii_alphanumeric() || it == '-') {
        return Err("the id is no file name".into());
    }
    let mut file = File::create(directory.join(id)).await?;
    say(
        &mut socket,
        r#"{"MsgType":"MsgUploadConf","MsgData":{"ChunkSizeKB":1024,"FilePos":0,"SendAhead":2}}"#,
    )
    .await?;
    if hear(&mut socket).await?.ack() != Some(true) {
        return Err("MsgAck is expected".into());
    }
    let mut received_bytes = 0;
    while received_bytes < length_bytes {
        match socket.next().await.ok_or("the connection broke")?? {
            Message::Binary(data) => {
                file.write_all(&data).await?;
                file.flush().await?;
                let count = data.len() as u64;
                received_bytes += count;
                let ack =
                    format!(r#"{{"MsgType":"MsgChunkAck","MsgData":{{"ChunkSize":{count}}}}}"#);
                say(&mut socket, &ack).await?;
            }
            Message::Ping(_) | Message::Pong(_) => {}
            other => return Err(format!("a chunk is expected, not {other:?}").into()),
        }
    }
    say(&mut socket, r#"{"MsgType":"MsgAllDone","MsgData":{"Success":true}}"#).await?;
    socket.close(None).await?;
    // Until the client has closed as well.
    while let Some(Ok(_)) = socket.next().await {}
    Ok(())
}

async fn hear(
    socket: &mut WebSocketStream<TcpStream>,
) -> Result<ClientMessage, Box<dyn Error + Send + Sync>> {
    let message = socket.next().await.ok_or("the connection broke")??;
    ClientMessage::parse(&message.into_data()).ok_or_else(|| "a message is expected".into())
}

async fn say(
    socket: &mut WebSocketStream<TcpStream>,
    text: &str,
) -> Result<(), tokio_tungstenite::tungstenite::Error> {
    socket.send(Message::text(text)).await
}
