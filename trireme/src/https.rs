//! One HTTPS request to one particular master, for probes and status; everything else uses [`crate::client`].

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::time::timeout;

use crate::dial::{MASTER, dial};

/// GETs `path` from the master at `address`, within `limit` in all.
pub async fn get(address: SocketAddr, tls: &Arc<ClientConfig>, path: &str, limit: Duration) -> Result<(StatusCode, Bytes)> {
    timeout(limit, get_unbounded(address, tls, path))
        .await
        .with_context(|| format!("{address} gave no answer within {limit:?}"))?
}

/// Whether the master at `address` says that it is ready.
pub async fn ready(address: SocketAddr, tls: &Arc<ClientConfig>, limit: Duration) -> Result<()> {
    let (status, body) = get(address, tls, "/readyz", limit).await?;
    if status != StatusCode::OK {
        bail!("{address} is not ready: {}", String::from_utf8_lossy(&body));
    }
    Ok(())
}

async fn get_unbounded(address: SocketAddr, tls: &Arc<ClientConfig>, path: &str) -> Result<(StatusCode, Bytes)> {
    let stream = dial(address, MASTER, tls).await.with_context(|| format!("cannot connect to {address}"))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let request = Request::get(path).header(http::header::HOST, MASTER).body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        Ok::<_, anyhow::Error>((status, response.into_body().collect().await?.to_bytes()))
    };
    tokio::pin!(connection);
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        ended = &mut connection => {
            ended?;
            exchange.await
        }
    }
}
