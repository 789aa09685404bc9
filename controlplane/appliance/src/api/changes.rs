//! GET `/v1/snapshots/{volume@name}/changes`: lines of JSON, sent while they are found.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use hyper::body::Frame;
use serde::Serialize;
use tokio::sync::mpsc;

use super::extract::Query;
use super::handlers::{Shared, snapshot_name};
use super::model::{ChangedRangeInfo, ChangesBegin, ChangesEnd, ChangesQuery};
use crate::error::Result;
use crate::name::ViewName;
use crate::pool::{ChangedRange, Changes, Comparison, Pool};

/// Bytes that are sent together.
const CHUNK_BYTES: usize = 32 << 10;
/// Such pieces on their way to a slow client; the search goes on when it has taken them.
const CHUNKS_MAX: usize = 4;

pub(super) async fn snapshot_changes(
    State(appliance): Shared,
    Path(name): Path<String>,
    Query(query): Query<ChangesQuery>,
) -> Result<Response> {
    let (volume, snapshot) = snapshot_name(&name)?;
    let pool = appliance.pool_of_volume(&volume, query.pool.as_deref())?;
    let to: Option<ViewName> = query.to.as_deref().map(str::parse).transpose()?;
    let comparison = pool.compare(&volume, &snapshot, to.as_ref())?;
    let (sender, chunks) = mpsc::channel(CHUNKS_MAX);
    tokio::spawn(send_all(pool, comparison, sender));
    Ok((
        [(CONTENT_TYPE, "application/x-ndjson")],
        Body::new(Chunks(chunks)),
    )
        .into_response())
}

/// What is sent, as it comes.
struct Chunks(mpsc::Receiver<Bytes>);

impl HttpBody for Chunks {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let next = self.0.poll_recv(context);
        next.map(|chunk| chunk.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// Lines that have not been sent.
struct Lines {
    waiting: Vec<u8>,
    sender: mpsc::Sender<Bytes>,
}

impl Lines {
    fn add(&mut self, line: &impl Serialize) {
        serde_json::to_writer(&mut self.waiting, line).expect("plain data");
        self.waiting.push(b'\n');
    }

    /// False if the client is gone.
    async fn send(&mut self) -> bool {
        let bytes = Bytes::from(std::mem::take(&mut self.waiting));
        self.sender.send(bytes).await.is_ok()
    }
}

/// Sends what is compared, every range that changed, and the sums; or the error that came in between.
async fn send_all(pool: Arc<Pool>, comparison: Comparison, sender: mpsc::Sender<Bytes>) {
    let mut lines = Lines {
        waiting: Vec::new(),
        sender,
    };
    lines.add(&ChangesBegin {
        from: comparison.from.clone(),
        to: comparison.to.clone(),
        size_bytes: comparison.view.size_bytes,
    });
    let mut end = ChangesEnd::default();
    let mut changes = Changes::new(comparison);
    loop {
        match changes.next(&pool).await {
            Ok(Some(range)) => {
                end.add(&range);
                lines.add(&ChangedRangeInfo {
                    offset_bytes: range.offset_bytes,
                    length_bytes: range.length_bytes,
                    hole: range.hole,
                });
            }
            Ok(None) => {
                lines.add(&end);
                break;
            }
            Err(error) => {
                tracing::warn!("{error}");
                lines.add(&error);
                break;
            }
        }
        if lines.waiting.len() >= CHUNK_BYTES && !lines.send().await {
            return;
        }
    }
    // The client may have gone away.
    lines.send().await;
}

impl ChangesEnd {
    fn add(&mut self, range: &ChangedRange) {
        self.ranges += 1;
        self.changed_bytes += range.length_bytes;
        self.hole_bytes += if range.hole { range.length_bytes } else { 0 };
    }
}
