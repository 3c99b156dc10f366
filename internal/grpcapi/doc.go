// Package grpcapi is the front door: it serves keybroker.v1, health and
// reflection over gRPC. It reads names, builds the calls of the use cases, and
// turns their answers into messages; it decides nothing about keys.
//
// Each call passes one list of interceptors (interceptors.go): log, error map,
// recovery, deadline or drain, and admission (size and protovalidate). The only
// error map of the product is in errors.go.
//
// It calls broker and rotation through the small interfaces in server.go, and
// knows no SQL and no AWS SDK. It never logs a message, a token, a blob or a
// context value.
package grpcapi
