package architecture

import "strings"

// module is what every import path of ours begins with.
const module = "github.com/keybroker/keybroker/"

// A room is one folder of the floor plan, with what its files may do. Its
// subfolders belong to it.
type room struct {
	dir string
	// Rooms that it may import, beside itself.
	rooms []string
	// Foreign import paths, and everything below them, that it may import. The
	// standard library is always allowed.
	foreign []string
	// May read the wall clock.
	clock bool
	// May read the environment.
	env bool
	// Random sources that it may import.
	random []string
}

// Foreign packages that several rooms share.
var (
	awsSDK   = []string{"github.com/aws/aws-sdk-go-v2", "github.com/aws/smithy-go"}
	grpc     = []string{"google.golang.org/grpc", "google.golang.org/protobuf", "google.golang.org/genproto/googleapis/rpc"}
	validate = []string{"buf.build/gen/go/bufbuild/protovalidate", "buf.build/go/protovalidate"}
	otelAPI  = []string{
		"go.opentelemetry.io/otel/attribute", "go.opentelemetry.io/otel/codes", "go.opentelemetry.io/otel/metric",
		"go.opentelemetry.io/otel/propagation", "go.opentelemetry.io/otel/semconv", "go.opentelemetry.io/otel/trace",
	}
	// Small, and by the authors of the standard library.
	golangX = []string{"golang.org/x/sync", "golang.org/x/time"}

	everyRandom = []string{"crypto/rand", "math/rand", "math/rand/v2"}
)

// The floor plan. A folder that is not here, and not below one that is, has to
// be entered first: that is the moment to think about what it may know.
var rooms = []room{
	{dir: "internal/broker"},
	{dir: "internal/pacer"},
	{
		dir:     "internal/rotation",
		rooms:   []string{"internal/broker", "internal/pacer"},
		foreign: join(otelAPI, golangX),
	},
	{
		dir:     "internal/awskms",
		rooms:   []string{"internal/broker", "internal/pacer"},
		foreign: join(awsSDK, otelAPI, golangX),
	},
	{
		dir:     "internal/sqlstore",
		rooms:   []string{"internal/broker", "internal/rotation"},
		foreign: join([]string{"github.com/jackc/pgx/v5", "github.com/pressly/goose/v3", "modernc.org/sqlite"}, otelAPI, golangX),
	},
	{
		dir:   "internal/grpcapi",
		rooms: []string{"internal/broker", "internal/rotation", "proto"},
		foreign: join(grpc, validate, otelAPI, golangX, []string{
			"github.com/grpc-ecosystem/go-grpc-middleware/v2",
			"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc",
		}),
	},
	{
		dir:     "internal/localkms",
		foreign: golangX,
		random:  []string{"crypto/rand"},
	},
	{
		dir:     "internal/brokertest",
		rooms:   []string{"internal/broker", "internal/rotation"},
		foreign: join(golangX, []string{"github.com/google/go-cmp", "pgregory.net/rapid"}),
		clock:   true,
		env:     true,
		random:  everyRandom,
	},
	{
		dir:     "internal/demo",
		rooms:   []string{"client", "proto"},
		foreign: join(awsSDK, grpc, golangX),
		clock:   true,
	},
	{
		dir:     "client",
		rooms:   []string{"proto"},
		foreign: join(grpc, golangX),
		clock:   true,
		random:  []string{"crypto/rand"},
	},
	{
		// What a test of somebody else's starts: it wires, as cmd does.
		dir:     "localkmstest",
		rooms:   []string{"internal/localkms"},
		foreign: awsSDK,
		clock:   true,
	},
	{
		dir: "cmd",
		rooms: []string{
			"client", "proto", "internal/awskms", "internal/broker", "internal/demo", "internal/grpcapi",
			"internal/localkms", "internal/pacer", "internal/rotation", "internal/sqlstore",
		},
		foreign: join(grpc, validate, golangX, []string{
			"github.com/grpc-ecosystem/go-grpc-middleware/v2", "github.com/prometheus/client_golang", "go.opentelemetry.io",
		}),
		clock:  true,
		env:    true,
		random: everyRandom,
	},
	{
		dir:     "proto",
		foreign: join(grpc, validate),
	},
}

// roomOf finds the room that a file or package of the module belongs to.
func roomOf(path string) (room, bool) {
	for _, r := range rooms {
		if isBelow(path, r.dir) {
			return r, true
		}
	}
	return room{}, false
}

// mayImport says whether a file of the room may import a package.
func (r room) mayImport(path string) bool {
	if ours, ok := strings.CutPrefix(path, module); ok {
		for _, dir := range append([]string{r.dir}, r.rooms...) {
			if isBelow(ours, dir) {
				return true
			}
		}
		return false
	}
	if first, _, _ := strings.Cut(path, "/"); !strings.Contains(first, ".") {
		return true // the standard library
	}
	// The API's root is one package among folders of another kind, the SDK's.
	if path == "go.opentelemetry.io/otel" {
		path = "go.opentelemetry.io/otel/trace"
	}
	for _, dir := range r.foreign {
		if isBelow(path, dir) {
			return true
		}
	}
	return false
}

// isBelow says whether path is dir or in it.
func isBelow(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, dir+"/")
}

func join(lists ...[]string) []string {
	var all []string
	for _, list := range lists {
		all = append(all, list...)
	}
	return all
}
