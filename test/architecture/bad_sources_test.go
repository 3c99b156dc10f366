package architecture

import (
	"strings"
	"testing"
)

// Each rule is shown to be able to fail, and to leave alone what it should.
func TestRulesCanFail(t *testing.T) {
	const ours = "github.com/keybroker/keybroker/"
	imports := func(p string) string { return "package p\nimport _ \"" + p + "\"\n" }

	for _, test := range []struct {
		name   string
		path   string
		source string
		// Part of the only fault; empty if there must be none.
		want string
	}{
		{"no such room", "internal/util/x.go", "package p\n", "no room of the floor plan"},
		{"not Go", "client/x.go", "package", "expected"},
		{"subfolder of a room", "internal/broker/deep/x.go", "package p\n", ""},

		{"broker: standard library", "internal/broker/x.go", imports("crypto/sha256"), ""},
		{"broker: golang.org/x", "internal/broker/x.go", imports("golang.org/x/sync/errgroup"), "must not import"},
		{"broker: rotation", "internal/broker/x.go", imports(ours + "internal/rotation"), "must not import"},
		{"broker: name that begins alike", "internal/broker/x.go", imports(ours + "internal/brokertest"), "must not import"},
		{"pacer: broker", "internal/pacer/x.go", imports(ours + "internal/broker"), "must not import"},
		{"localkms: broker", "internal/localkms/x.go", imports(ours + "internal/broker"), "must not import"},
		{"client: keybrokerv1", "client/x.go", imports(ours + "proto/keybroker/v1"), ""},
		{"client: broker", "client/x.go", imports(ours + "internal/broker"), "must not import"},
		{"client: AWS SDK", "client/x.go", imports("github.com/aws/aws-sdk-go-v2/service/kms"), "must not import"},
		{"proto: broker", "proto/keybroker/v1/x.go", imports(ours + "internal/broker"), "must not import"},
		{"rotation: broker", "internal/rotation/x.go", imports(ours + "internal/broker"), ""},
		{"rotation: an adapter", "internal/rotation/x.go", imports(ours + "internal/awskms"), "must not import"},
		{"rotation: OTel API", "internal/rotation/x.go", imports("go.opentelemetry.io/otel/trace"), ""},
		{"rotation: OTel's root", "internal/rotation/x.go", imports("go.opentelemetry.io/otel"), ""},
		{"rotation: OTel SDK", "internal/rotation/x.go", imports("go.opentelemetry.io/otel/sdk/trace"), "must not import"},
		{"rotation: database", "internal/rotation/x.go", imports("modernc.org/sqlite"), "must not import"},
		{"awskms: AWS SDK", "internal/awskms/x.go", imports("github.com/aws/aws-sdk-go-v2/service/kms"), ""},
		{"awskms: another adapter", "internal/awskms/x.go", imports(ours + "internal/sqlstore"), "must not import"},
		{"sqlstore: driver", "internal/sqlstore/x.go", imports("github.com/jackc/pgx/v5/stdlib"), ""},
		{"sqlstore: AWS SDK", "internal/sqlstore/x.go", imports("github.com/aws/smithy-go"), "must not import"},
		{"sqlstore: grpc", "internal/sqlstore/x.go", imports("google.golang.org/grpc/codes"), "must not import"},
		{"sqlstore: pacer", "internal/sqlstore/x.go", imports(ours + "internal/pacer"), "must not import"},
		{"grpcapi: grpc", "internal/grpcapi/x.go", imports("google.golang.org/grpc"), ""},
		{"grpcapi: driver", "internal/grpcapi/x.go", imports("github.com/jackc/pgx/v5"), "must not import"},
		{"grpcapi: an adapter", "internal/grpcapi/x.go", imports(ours + "internal/awskms"), "must not import"},
		{"demo: broker", "internal/demo/x.go", imports(ours + "internal/broker"), "must not import"},
		{"cmd: an adapter", "cmd/broker/x.go", imports(ours + "internal/sqlstore"), ""},
		{"cmd: OTel SDK", "cmd/broker/x.go", imports("go.opentelemetry.io/otel/sdk/trace"), ""},
		{"cmd: test bench", "cmd/broker/x.go", imports(ours + "internal/brokertest"), "must not import"},
		{"cmd: AWS SDK", "cmd/broker/x.go", imports("github.com/aws/aws-sdk-go-v2/config"), "must not import"},
		{"cmd: driver", "cmd/broker/x.go", imports("modernc.org/sqlite"), "must not import"},
		{"dot import", "client/x.go", "package p\nimport . \"strings\"\n", "dot import"},

		{"clock in cmd", "cmd/broker/x.go", "package p\nimport \"time\"\nfunc f() { _ = time.Now() }\n", ""},
		{"clock called", "internal/broker/x.go", "package p\nimport \"time\"\nfunc f() { _ = time.Now() }\n", "time is injected"},
		{"clock passed on", "internal/grpcapi/x.go", "package p\nimport \"time\"\nfunc f(g any) { _ = time.Now }\n", "time is injected"},
		{"clock under another name", "internal/localkms/x.go", "package p\nimport w \"time\"\nfunc f() { _ = w.Since(w.Time{}) }\n", "time is injected"},
		{"a clock of one's own", "internal/broker/x.go", "package p\ntype c struct{ Now func() int }\nfunc f(time c) { _ = time.Now() }\n", ""},
		{"environment in brokertest", "internal/brokertest/x.go", "package p\nimport \"os\"\nfunc f() { _ = os.Getenv(\"X\") }\n", ""},
		{"environment elsewhere", "client/x.go", "package p\nimport \"os\"\nfunc f() { _ = os.Getenv(\"X\") }\n", "configuration is read in cmd"},
		{"chance in client", "client/x.go", imports("crypto/rand"), ""},
		{"weak chance in client", "client/x.go", imports("math/rand/v2"), "chance is injected"},
		{"chance in broker", "internal/broker/x.go", imports("crypto/rand"), "chance is injected"},
		{"chance in awskms", "internal/awskms/x.go", imports("math/rand/v2"), "chance is injected"},

		{"init", "internal/broker/x.go", "package p\nfunc init() {}\n", "init runs unasked"},
		{"a method of that name", "internal/broker/x.go", "package p\ntype t int\nfunc (t) init() {}\n", ""},
		{"long file", "internal/broker/x.go", "package p\n" + strings.Repeat("\n", maxLines), "split it by thought"},
		{"long generated file", "proto/x.go", "// Code generated by x. DO NOT EDIT.\n\npackage p\nvar n int\nfunc init() {}\n" + strings.Repeat("\n", maxLines), ""},

		{"variable", "internal/broker/x.go", "package p\nvar n int\n", "mutable package variable"},
		{"variable with a value", "internal/broker/x.go", "package p\nvar n = 1\n", "mutable package variable"},
		{"function as a variable", "internal/broker/x.go", "package p\nvar now = func() int { return 1 }\n", "mutable package variable"},
		{"lock", "internal/broker/x.go", "package p\nimport \"sync\"\nvar m = sync.Mutex{}\n", "mutable package variable"},
		{"pool behind a pointer", "internal/broker/x.go", "package p\nimport \"sync\"\nvar m = &sync.Pool{}\n", "mutable package variable"},
		{"sentinel", "internal/broker/x.go", "package p\nimport \"errors\"\nvar ErrX = errors.New(\"x\")\n", ""},
		{"somebody's New", "internal/broker/x.go", "package p\nvar errors struct{ New func(string) error }\n", "mutable package variable"},
		{"expression", "internal/broker/x.go", "package p\nimport \"regexp\"\nvar x = regexp.MustCompile(\"x\")\n", ""},
		{"assertion", "internal/broker/x.go", "package p\ntype t int\nvar _ any = (*t)(nil)\n", ""},
		{"embedded file", "internal/sqlstore/x.go", "package p\nimport \"embed\"\n\n//go:embed *.sql\nvar files embed.FS\n", ""},
		{"encoding", "internal/localkms/x.go", "package p\nimport \"encoding/base32\"\nvar x = base32.NewEncoding(\"\").WithPadding(base32.NoPadding)\n", ""},
		{"table", "internal/broker/x.go", "package p\nvar m = map[string]int{\"a\": 1}\nfunc f() int { return m[\"a\"] }\n", ""},
		{"table assigned", "internal/broker/x.go", "package p\nvar m = map[string]int{}\nfunc f() { m = nil }\n", "is changed here"},
		{"table filled", "internal/broker/x.go", "package p\nvar m = map[string]int{}\nfunc f() { m[\"a\"] = 1 }\n", "is changed here"},
		{"table counted up", "internal/broker/x.go", "package p\nvar m = []int{1}\nfunc f() { m[0]++ }\n", "is changed here"},
		{"table emptied", "internal/broker/x.go", "package p\nvar m = map[string]int{}\nfunc f() { delete(m, \"a\") }\n", "is changed here"},
		{"table lent for writing", "internal/broker/x.go", "package p\ntype t struct{ n int }\nvar m = t{1}\nfunc f() *int { return &m.n }\n", "is changed here"},
		{"local of the same name", "internal/broker/x.go", "package p\nvar m = []int{1}\nfunc f() int { var m []int; m = nil; n := m; _ = n; return 1 }\n", ""},
		{"field of the same name", "internal/broker/x.go", "package p\nvar m = []int{1}\ntype t struct{ m []int }\nfunc f(x *t) { x.m = m }\n", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			faults := check(map[string]string{test.path: test.source})
			switch {
			case test.want == "" && len(faults) > 0:
				t.Errorf("faults %q, want none", faults)
			case test.want != "" && (len(faults) != 1 || !strings.Contains(faults[0], test.want)):
				t.Errorf("faults %q, want one with %q", faults, test.want)
			}
		})
	}
}

// A table may be declared in one file and changed in another.
func TestVariablesAreFollowedAcrossFiles(t *testing.T) {
	faults := check(map[string]string{
		"internal/broker/a.go": "package p\nvar m = map[string]int{}\n",
		"internal/broker/b.go": "package p\nfunc f() { m[\"a\"] = 1 }\n",
		"internal/pacer/c.go":  "package p\nfunc f(m map[string]int) { m[\"a\"] = 1 }\n",
	})
	if len(faults) != 1 || !strings.Contains(faults[0], "b.go") {
		t.Errorf("faults %q, want one in b.go", faults)
	}
}
