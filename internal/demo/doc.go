// Package demo is a customer of the broker, at work: three AWS accounts, one
// key change, and writes that go on meanwhile. It is also an example to read.
//
// What it does. The customer owns KMS keys and gives them the policy that the
// broker rendered. The service, in an account of its own, takes the files of a
// directory, has the broker make a data key for each, unwraps it at KMS with its
// own role and grant, and seals the file. A legacy service hands over data keys
// that it wrapped long ago. Then the customer changes the key, while a writer
// adds files and a reader opens them; the old key is disabled; every file is
// opened and compared; and what the broker claims is looked up where the broker
// has no say: in the inventory, and at KMS as the customer.
//
// Who may call it. cmd/broker, which starts a broker and a KMS on loopback, and
// tests.
//
// What it never does. It uses nothing of the broker but its API and its client:
// what stands here, any customer of ours could write. It takes no step back: a
// run that was stopped anywhere goes on with the next call of Run on the same
// data directory.
//
// The files, in the order of a run: run.go (the stages), customer.go, service.go,
// legacy.go, fill.go, change.go, traffic.go, verify.go; besides them state.go,
// tally.go and sealed.go (what a run leaves on disk), files.go, kms.go, conn.go,
// progress.go; and tour.go, for those who try it by hand.
package demo
