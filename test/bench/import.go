package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/keybroker/keybroker/internal/broker"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

// importers is how many ImportDataKeys calls are under way at a time.
const importers = 4

// importDataKeys takes blobs in by full calls that spare KMS (allow_unproven), in
// turns as the use case and as a whole RPC whose client is another process.
func (b *bench) importDataKeys(ctx context.Context, engine string) (err error) {
	at, err := b.newPlace(ctx, engine, "import")
	if err != nil {
		return err
	}
	w, err := openWorld(ctx, at, b.kms.Fast, setting{pool: enginePool()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	return b.importInto(ctx, w, engine)
}

// importInto does so in one world.
func (b *bench) importInto(ctx context.Context, w *world, engine string) (err error) {
	if err := w.onboard(ctx); err != nil {
		return err
	}
	if w.blobs, err = w.makeBlobs(ctx, broker.MaxImportItems); err != nil {
		return err
	}
	address, stop, err := w.serveAPI()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	before := w.calls.Load()

	kinds := []func(context.Context, string, int) error{w.importRows, func(ctx context.Context, prefix string, calls int) error {
		return w.importFromAfar(ctx, address, prefix, calls)
	}}
	names := []string{"import", "import-rpc"}
	cpu, rate := make([][]float64, len(kinds)), make([][]float64, len(kinds))
	for round := range b.size.importRounds + 1 {
		for i, run := range kinds {
			var f figure
			name := fmt.Sprintf("%s-%s-%d", names[i], engine, round)
			err := b.profiled(name, func() (err error) {
				f, err = measure(b.size.imports*broker.MaxImportItems, func() error { return run(ctx, name, b.size.imports) })
				return err
			})
			if err != nil {
				return err
			}
			if round > 0 { // the first warms up
				cpu[i], rate[i] = append(cpu[i], f.CPU), append(rate[i], f.rate())
			}
		}
	}
	b.say("ImportDataKeys, %s: use case %.0f rows/s, %.0f µs; RPC %.0f rows/s, %.0f µs", engine, median(rate[0]), median(cpu[0]), median(rate[1]), median(cpu[1]))
	b.report.add(metric{Name: "ImportDataKeys, rows per second, no KMS call", Engine: engine, Value: median(rate[1]), Target: atLeast(10_000), Unit: "rows/s",
		Raw: raw{"RPC, rows/s": rate[1], "RPC, CPU µs/row": cpu[1], "use case, rows/s": rate[0], "use case, CPU µs/row": cpu[0],
			"KMS calls": {float64(w.calls.Load() - before)}}})
	return nil
}

// importRows makes full calls of the use case.
func (w *world) importRows(ctx context.Context, prefix string, calls int) error {
	d, _, err := w.broker.GetDomain(ctx, caller(), tenant)
	if err != nil {
		return err
	}
	return inParallel(importers, calls, func(call int) error {
		in := broker.ImportDataKeys{Domain: tenant, AllowUnproven: true, Items: make([]broker.ImportItem, broker.MaxImportItems)}
		for i := range in.Items {
			from := w.blobs[i%len(w.blobs)]
			in.Items[i] = broker.ImportItem{ID: importID(prefix, call, i), Ciphertext: from.wrapped.Ciphertext,
				SourceKey: d.KMSKey, SourceContext: from.pairs.With(d.Reserved)}
		}
		results, err := w.broker.ImportDataKeys(ctx, caller(), in)
		for _, r := range results {
			err = errors.Join(err, r.Err)
		}
		return err
	})
}

// importID lets the calls of a run go through the ids in order, as an export of
// a service would.
func importID(prefix string, call, item int) broker.DataKeyID {
	return broker.DataKeyID(fmt.Sprintf("%s-%06d", prefix, call*broker.MaxImportItems+item))
}

const partImport = "import"

// importJob is what the other process is to import, again and again under other
// ids: blobs, and the context of each.
type importJob struct {
	KMSKey   string
	Blobs    [][]byte
	Contexts []map[string]string
}

func (w *world) importFromAfar(ctx context.Context, address, prefix string, calls int) error {
	d, _, err := w.broker.GetDomain(ctx, caller(), tenant)
	if err != nil {
		return err
	}
	job := importJob{KMSKey: string(d.KMSKey)}
	for _, from := range w.blobs {
		job.Blobs, job.Contexts = append(job.Blobs, from.wrapped.Ciphertext), append(job.Contexts, from.pairs.With(d.Reserved))
	}
	text, err := json.Marshal(job)
	if err != nil {
		return err
	}
	command, err := startSelf(ctx, partImport, address, prefix, strconv.Itoa(calls))
	if err != nil {
		return err
	}
	command.Stdin = bytes.NewReader(text)
	return command.Run()
}

// importRPCs is that process.
func importRPCs(ctx context.Context, args []string, _ io.Writer) error {
	if len(args) != 3 {
		return errors.New("want an address, a prefix for ids and a number of calls")
	}
	calls, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	var job importJob
	if err := json.NewDecoder(os.Stdin).Decode(&job); err != nil {
		return err
	}
	conn, err := grpc.NewClient(args[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	client := keybrokerv1.NewDataKeyServiceClient(conn)
	return inParallel(importers, calls, func(call int) error {
		in := &keybrokerv1.ImportDataKeysRequest{Parent: tenant.Name(), AllowUnproven: true, RequestId: fmt.Sprintf("%s-%d", args[1], call),
			Items: make([]*keybrokerv1.ImportDataKeysRequest_Item, broker.MaxImportItems)}
		for i := range in.Items {
			from := i % len(job.Blobs)
			in.Items[i] = &keybrokerv1.ImportDataKeysRequest_Item{DataKeyId: string(importID(args[1], call, i)), CiphertextBlob: job.Blobs[from],
				SourceKmsKey: job.KMSKey, SourceEncryptionContext: job.Contexts[from]}
		}
		answer, err := client.ImportDataKeys(ctx, in)
		for _, r := range answer.GetResults() {
			if refusal := r.GetError(); refusal != nil {
				return fmt.Errorf("an item was refused: %s", refusal.GetMessage())
			}
		}
		return err
	})
}
