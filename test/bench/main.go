// Command bench measures the broker against its performance targets, side by
// side with what it is compared to, and prints one table. It asserts nothing:
// a missed target is a line of the table. docs/performance.md says how to read
// it.
//
//	make bench                 the default lines
//	make bench ARGS=-quick     tiny sizes: shows that it works, measures nothing
//	BENCH=full make bench      the million-row lines too
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/keybroker/keybroker/internal/brokertest"
)

// sizes is how much is measured.
type sizes struct {
	rows, rounds         int // of the durable job beside the bare loop
	slowRows, slowRounds int // of the same against a KMS that takes its time
	domains              []int
	domainRounds         int
	creates, createRound int
	quotaRows            int           // of a job against a KMS with a quota
	besideRows           int           // of a job beside foreground calls
	besideTime           time.Duration // of each of those measurements
	besideRounds         int
	crashRows, kills     int // of a job whose process is killed
	imports              int // full calls of ImportDataKeys
	importRounds         int
	rateTime             time.Duration // per operation of localkms and number of callers
	stock                int           // keys and grants that those calls use up, for each number of callers
}

func quickSizes() sizes {
	return sizes{rows: 300, rounds: 1, slowRows: 100, slowRounds: 1, domains: []int{100, 400}, domainRounds: 1,
		quotaRows: 200, besideRows: 300, besideTime: 100 * time.Millisecond, besideRounds: 1, crashRows: 200, kills: 1,
		creates: 20, createRound: 1, imports: 2, importRounds: 1, rateTime: 5 * time.Millisecond, stock: 20}
}

func defaultSizes() sizes {
	return sizes{rows: 20_000, rounds: 5, slowRows: 8_000, slowRounds: 3, domains: []int{10_000, 200_000}, domainRounds: 2,
		quotaRows: 40_000, besideRows: 4_000, besideTime: 5 * time.Second, besideRounds: 5, crashRows: 20_000, kills: 20,
		creates: 1000, createRound: 5, imports: 60, importRounds: 5, rateTime: 700 * time.Millisecond, stock: 2000}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run is the program, or one of the processes that it starts of itself.
func run(ctx context.Context, args []string, out, progress io.Writer) error {
	if len(args) > 0 {
		if part, ok := parts()[args[0]]; ok {
			return part(ctx, args[1:], out)
		}
	}
	set := flag.NewFlagSet("bench", flag.ContinueOnError)
	set.SetOutput(progress)
	quick := set.Bool("quick", false, "tiny sizes, to see that it works; the figures mean nothing")
	full := set.Bool("full", os.Getenv("BENCH") == "full", "a domain of 1,000,000 rows too; so does BENCH=full")
	output := set.String("o", "bench.json", "the `file` that gets every figure")
	profiles := set.String("profile", "", "the `directory` for CPU profiles of what is compared; they cost a little themselves")
	engines := set.String("engines", sqlite+","+postgresql, "the `engines` that are measured")
	only := set.String("only", "", "measure these `groups` of lines alone, of "+groupNames())
	parent := set.String("dir", "", "the `directory` for databases, which are removed; empty takes the system's temporary one")
	if err := set.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if set.NArg() > 0 {
		return fmt.Errorf("unknown argument %q", set.Arg(0))
	}
	for name := range strings.SplitSeq(*only, ",") {
		if name != "" && !slices.ContainsFunc(groups(), func(g group) bool { return g.name == name }) {
			return fmt.Errorf("-only: %q is none of %s", name, groupNames())
		}
	}
	size := defaultSizes()
	if *quick {
		size = quickSizes()
	}
	if *full {
		size.domains = append(size.domains, 1_000_000)
	}
	dir, err := os.MkdirTemp(*parent, "keybroker-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := bench{size: size, dir: dir, postgres: brokertest.Postgres{Durable: true}, profiles: *profiles, only: *only,
		progress: progress, start: time.Now()}
	err = b.chooseEngines(ctx, *engines)
	if err == nil {
		err = b.all(ctx)
	}
	if err := errors.Join(err, b.closePlaces()); err != nil {
		return err
	}
	if err := b.report.writeJSON(*output); err != nil {
		return err
	}
	b.say("done; every figure is in %s", *output)
	return b.report.writeTable(out)
}

// parts are the processes that a bench starts of itself, by their first argument.
func parts() map[string]func(context.Context, []string, io.Writer) error {
	return map[string]func(context.Context, []string, io.Writer) error{
		partKMS: serveKMS, partChange: changeOnce, partWork: workUntilKilled, partRPC: callRPCs, partImport: importRPCs,
	}
}

// A bench is one run.
type bench struct {
	size     sizes
	dir      string
	postgres brokertest.Postgres
	drops    []func() error // of databases
	engines  []string
	profiles string
	only     string // groups, with commas between; "" is all
	progress io.Writer
	start    time.Time
	kms      *remoteKMS
	report   report
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.progress, "%5.0f s  %s\n", time.Since(b.start).Seconds(), fmt.Sprintf(format, args...))
}

func (b *bench) all(ctx context.Context) (err error) {
	if b.kms, err = startKMS(ctx, 0); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.kms.stop()) }()
	for _, group := range groups() {
		if b.only != "" && !slices.Contains(strings.Split(b.only, ","), group.name) {
			continue
		}
		engines := b.engines
		if group.name == "kms" {
			engines = []string{"localkms"}
		}
		for _, engine := range engines {
			if err := group.measure(b, ctx, engine); err != nil {
				return fmt.Errorf("%s on %s: %w", group.name, engine, err)
			}
		}
	}
	return nil
}

// A group is lines that are measured together.
type group struct {
	name    string
	measure func(b *bench, ctx context.Context, engine string) error
}

func groups() []group {
	return []group{
		{"job", (*bench).sideBySide}, {"slow", (*bench).sideBySideSlow}, {"quota", (*bench).quotaUse},
		{"foreground", (*bench).foregroundBesideJob}, {"crashes", (*bench).crashes}, {"sizes", (*bench).domainSizes},
		{"create", (*bench).createDataKey}, {"import", (*bench).importDataKeys}, {"kms", (*bench).kmsRates},
	}
}

func groupNames() string {
	var names []string
	for _, g := range groups() {
		names = append(names, g.name)
	}
	return strings.Join(names, ",")
}

// profiled runs fn under the CPU profiler, if that was asked for.
func (b *bench) profiled(name string, fn func() error) (err error) {
	if b.profiles == "" {
		return fn()
	}
	f, err := os.Create(filepath.Join(b.profiles, name+".pprof"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := pprof.StartCPUProfile(f); err != nil {
		return err
	}
	defer pprof.StopCPUProfile()
	return fn()
}
