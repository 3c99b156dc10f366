// Package rotation changes keys: it accepts a change, prepares the new key,
// switches the domain to it, moves every wrapped data key with KMS ReEncrypt,
// waits out what may still be on its way, verifies, retires the old grants and
// reports whether the old key may be retired.
//
// The database is the engine. A job's phases run under the job's lease, its
// rows in shards under a lease each; every commit is fenced by its lease, so a
// replica that was paused or cut off writes nothing. The rows are the truth:
// pending is what has an epoch below the target; cursors and counts only steer
// and report.
//
// It uses broker's nouns, ports and grant use cases; it knows no SQL, no gRPC
// and no AWS SDK.
package rotation
