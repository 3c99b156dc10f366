// Command broker is keybroker's one program: the server, its embedded KMS, and
// the demo.
//
// What it does. It reads configuration, environment and clock, wires the rooms
// to each other, sets OpenTelemetry up, and starts and stops everything. Each
// subcommand has a file of its own.
//
// Who may call it. People, and whatever starts servers. The environment that it
// reads is listed in env.go.
//
// What it never does. It decides nothing about keys, serves beyond loopback and
// unix sockets (callers are not authenticated yet), and follows no
// AWS_ENDPOINT_URL: where KMS is says the configuration alone.
package main
