// Package broker is the ground floor: the nouns, the rules, the ports and the
// use cases of the key broker. It knows domains, their keys by epoch, grants,
// wrapped data keys, requests and audit events. It knows no jobs, no SQL, no
// gRPC and no AWS SDK: those rooms come to it through the ports Store,
// Registrar and Worker.
//
// One file holds one verb. Each use case takes an explicit Caller, appends its
// audit row in the transaction of its effect, and never calls KMS inside a
// transaction.
//
// The broker never holds a plaintext data key. Grant tokens pass through once,
// in the answer that minted them, and are never stored or logged.
package broker
