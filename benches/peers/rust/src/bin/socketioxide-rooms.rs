//! A rooms server on socketioxide (axum, hyper, tokio on one thread): the least that satisfies the load generator (benches/src/dialect.rs).
//! A token is not looked at. `PORT` in the environment.

use axum::Router;
use serde::{Deserialize, Serialize};
use serde_json::json;
use socketioxide::SocketIo;
use socketioxide::extract::{AckSender, Data, SocketRef};
use tokio::net::TcpListener;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Packets that may wait for one connection. The default of 128 loses events under a saturated fan-out, and what is lost does not count.
const WAITING_MAX: usize = 4_096;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Join {
    room_id: String,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Message {
    room_id: String,
    content: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port: u16 = std::env::var("PORT")?.parse()?;
    let (layer, io) = SocketIo::builder().transports([socketioxide::TransportType::Websocket]).max_buffer_size(WAITING_MAX).build_layer();
    let everyone = io.clone();
    io.ns("/", async move |socket: SocketRef| {
        socket.on("room:join", async |socket: SocketRef, Data(join): Data<Join>, answer: AckSender| {
            socket.join(join.room_id);
            answer.send(&json!({ "success": true })).ok();
        });
        socket.on("message", async move |Data(message): Data<Message>| {
            everyone.to(message.room_id.clone()).emit("message", &message).await.ok();
        });
        socket.on("typing", async |answer: AckSender| {
            answer.send(&json!({ "success": true })).ok();
        });
    });
    let listener = axum::serve::ListenerExt::tap_io(TcpListener::bind(("127.0.0.1", port)).await?, |socket| {
        // A socket that will not have it only answers later.
        let _ = socket.set_nodelay(true);
    });
    axum::serve(listener, Router::new().layer(layer)).await?;
    Ok(())
}
