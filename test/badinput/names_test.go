package badinput_test

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/keybroker/keybroker/proto/keybroker/v1"
	"github.com/keybroker/keybroker/test/harness"
)

// malformed spoils a good name in every way that a resource name may be wrong.
func malformed(good string) map[string]string {
	collection, id, _ := strings.Cut(good, "/")
	last := good[strings.LastIndex(good, "/")+1:]
	parent := strings.TrimSuffix(good, last)
	return map[string]string{
		"empty":                     "",
		"an id alone":               last,
		"a collection alone":        collection,
		"an empty id":               parent,
		"a slash in front":          "/" + good,
		"a slash behind":            good + "/",
		"two slashes":               strings.Replace(good, "/", "//", 1),
		"another collection":        "projects/" + id,
		"a collection in capitals":  strings.ToUpper(collection) + "/" + id,
		"one part more":             good + "/versions/1",
		"a wildcard":                parent + "*",
		"a space behind":            good + " ",
		"a line end":                good + "\n",
		"percent encoding":          strings.Replace(good, "/", "%2F", 1),
		"a dot":                     parent + ".",
		"two dots":                  parent + "..",
		"another alphabet":          parent + "аcme", // a Cyrillic a
		"a NUL":                     good + "\x00",
		"a URL":                     "//keybroker.googleapis.com/" + good,
		"129 characters":            parent + strings.Repeat("a", 129),
		"another project's domains": "organizations/1/" + good,
		"a domain in capitals":      strings.Replace(good, "domains/", "domains/A", 1),
	}
}

// TestMalformedNames: every method's name or parent, whatever kind of resource it
// names, has one form.
func TestMalformedNames(t *testing.T) {
	w := newWorld(t, harness.Config{})
	for _, m := range methods() {
		for _, field := range []protoreflect.Name{"name", "parent"} {
			if !has(m, field) {
				continue
			}
			good := w.good(m.Name()).ProtoReflect().Get(m.Input().Fields().ByName(field)).String()
			bad := malformed(good)
			if !strings.HasPrefix(string(m.Name()), "List") || m.Name() == "ListReencryptionFailures" {
				bad["every domain"] = strings.Replace(good, strings.Split(good, "/")[1], "-", 1)
			}
			for what, name := range bad {
				in := w.good(m.Name())
				in.ProtoReflect().Set(m.Input().Fields().ByName(field), protoreflect.ValueOfString(name))
				w.refused(fmt.Sprintf("%s, %s: %q", m.Name(), what, name), m.Name(), in, invalid("NAME_INVALID", string(field)))
			}
		}
	}
	for what, name := range malformed("domains/acme") {
		w.refused("UpdateDomain, "+what, "UpdateDomain", &pb.UpdateDomainRequest{Domain: &pb.Domain{Name: name, DisplayName: "x"}}, invalid("NAME_INVALID", "domain.name"))
	}
	for what, name := range malformed("domains/acme/dataKeys/k1") {
		w.refused("BatchGetDataKeys, "+what, "BatchGetDataKeys", &pb.BatchGetDataKeysRequest{Parent: "domains/acme",
			Names: []string{"domains/acme/dataKeys/k2", name}}, invalid("NAME_INVALID", "names[1]"))
	}
	for what, name := range malformed(w.brokenJob + "/failures/bad") {
		w.refused("AcknowledgeReencryptionFailures, "+what, "AcknowledgeReencryptionFailures", &pb.AcknowledgeReencryptionFailuresRequest{
			Parent: w.brokenJob, Names: []string{name}, Reason: "x"}, invalid("NAME_INVALID", "names[0]"))
	}
}

// TestMalformedIDs: what a caller may choose as an id, of every kind.
func TestMalformedIDs(t *testing.T) {
	w := newWorld(t, harness.Config{})
	var calls []badCall
	for what, id := range map[string]string{
		"capitals": "Acme", "an underscore": "a_b", "a slash": "a/b", "a dot": "a.b", "a hyphen in front": "-a", "a hyphen behind": "a-",
		"64 characters": strings.Repeat("a", 64), "a space": "a b", "a line end": "a\n", "an umlaut": "ä", "a wildcard": "-",
	} {
		calls = append(calls,
			badCall{what, "CreateDomain", spoiling(func(m *pb.CreateDomainRequest) { m.DomainId = id }), invalid("FIELD_INVALID", "domain_id")},
			badCall{what, "CreateGrant", spoiling(func(m *pb.CreateGrantRequest) { m.GrantId = id }), invalid("FIELD_INVALID", "grant_id")})
	}
	calls = append(calls,
		badCall{"none", "CreateDomain", spoiling(func(m *pb.CreateDomainRequest) { m.DomainId = "" }), invalid("FIELD_INVALID", "domain_id")},
		badCall{"a digit in front", "CreateDomain", spoiling(func(m *pb.CreateDomainRequest) { m.DomainId = "1a" }), invalid("FIELD_INVALID", "domain_id")},
		badCall{"none", "ImportDataKeys", spoiling(func(m *pb.ImportDataKeysRequest) { m.Items[0].DataKeyId = "" }), invalid("FIELD_INVALID", "items[0].data_key_id")})
	for what, id := range map[string]string{
		"a slash": "a/b", "a dot in front": ".a", "a hyphen in front": "-a", "129 characters": strings.Repeat("a", 129), "a space": "a b", "a line end": "a\n", "an umlaut": "ä",
	} {
		calls = append(calls,
			badCall{what, "CreateDataKey", spoiling(func(m *pb.CreateDataKeyRequest) { m.DataKeyId = id }), invalid("FIELD_INVALID", "data_key_id")},
			badCall{what, "ImportDataKeys", spoiling(func(m *pb.ImportDataKeysRequest) { m.Items[0].DataKeyId = id }), invalid("FIELD_INVALID", "items[0].data_key_id")})
	}
	w.run(calls)
}

// absent are good names of what is not there, by the collection of their last
// part, with the reason that says so.
func (w *world) absent() map[string]refusal {
	none := func(reason string) refusal { return refusal{Code: codes.NotFound, Reason: reason} }
	return map[string]refusal{
		"domains/none":                                        none("DOMAIN_NOT_FOUND"),
		"domains/acme/grants/none":                            none("GRANT_NOT_FOUND"),
		"domains/none/grants/orders":                          none("DOMAIN_NOT_FOUND"),
		"domains/acme/dataKeys/none":                          none("DATA_KEY_NOT_FOUND"),
		"domains/acme/dataKeys/K1":                            none("DATA_KEY_NOT_FOUND"), // ids have case
		"domains/none/dataKeys/k1":                            none("DOMAIN_NOT_FOUND"),
		"domains/acme/reencryptionJobs/none":                  none("JOB_NOT_FOUND"),
		strings.Replace(w.acmeJob, "acme", "none", 1):         none("DOMAIN_NOT_FOUND"),
		strings.Replace(w.acmeJob, "acme", "broken", 1):       none("JOB_NOT_FOUND"), // another domain's job
		w.acmeJob + "/retirementReport":                       none("REPORT_NOT_FOUND"),
		"domains/acme/reencryptionJobs/none/retirementReport": none("JOB_NOT_FOUND"),
		"domains/acme/grants/keybroker-worker":                none("GRANT_NOT_FOUND"), // the broker's own
	}
}

// shape is a name without its ids.
func shape(name string) string {
	parts := strings.Split(name, "/")
	for i := 1; i < len(parts); i += 2 {
		parts[i] = "*"
	}
	return strings.Join(parts, "/")
}

// TestAbsentResources: every method that names a resource says in one way that
// there is none.
func TestAbsentResources(t *testing.T) {
	w := newWorld(t, harness.Config{})
	for _, m := range methods() {
		for _, field := range []protoreflect.Name{"name", "parent"} {
			if !has(m, field) {
				continue
			}
			f := m.Input().Fields().ByName(field)
			good := w.good(m.Name()).ProtoReflect().Get(f).String()
			met := 0
			for name, want := range w.absent() {
				if shape(name) != shape(good) {
					continue
				}
				met++
				in := w.good(m.Name())
				in.ProtoReflect().Set(f, protoreflect.ValueOfString(name))
				if b, ok := in.(*pb.BatchGetDataKeysRequest); ok {
					b.Names = []string{name + "/dataKeys/k1"}
				}
				w.refused(fmt.Sprintf("%s of %s", m.Name(), name), m.Name(), in, want)
			}
			if met == 0 {
				t.Errorf("%s: no absent name is known for %s", m.Name(), shape(good))
			}
		}
	}
	missing := refusal{Code: codes.NotFound, Reason: "DATA_KEY_NOT_FOUND"}
	w.run([]badCall{
		{"of a domain that is absent", "UpdateDomain", spoiling(func(m *pb.UpdateDomainRequest) { m.Domain.Name = "domains/none" }), refusal{Code: codes.NotFound, Reason: "DOMAIN_NOT_FOUND"}},
		{"one of two is absent", "BatchGetDataKeys", spoiling(func(m *pb.BatchGetDataKeysRequest) { m.Names = append(m.Names, "domains/acme/dataKeys/none") }), missing},
		{"of another domain", "BatchGetDataKeys", spoiling(func(m *pb.BatchGetDataKeysRequest) { m.Names[0] = "domains/broken/dataKeys/good" }), invalid("NAME_INVALID", "names[0]")},
		{"in place of one that is absent", "ImportDataKeys", spoiling(func(m *pb.ImportDataKeysRequest) { m.Items[0].Etag = "1" }), missing},
		{"of a row that did not fail", "AcknowledgeReencryptionFailures", spoiling(func(m *pb.AcknowledgeReencryptionFailuresRequest) {
			m.All, m.Names = false, []string{w.brokenJob + "/failures/good"}
		}), invalid("FIELD_INVALID", "names[0]")},
		{"of another job's", "AcknowledgeReencryptionFailures", spoiling(func(m *pb.AcknowledgeReencryptionFailuresRequest) {
			m.All, m.Names = false, []string{w.acmeJob + "/failures/bad"}
		}), invalid("NAME_INVALID", "names[0]")},
	})
}

// TestTakenIDs: a second resource of an id is refused, and so is one of an id
// that was deleted.
func TestTakenIDs(t *testing.T) {
	w := newWorld(t, harness.Config{})
	for _, gone := range []proto.Message{&pb.DeleteDomainRequest{Name: "domains/empty"}, &pb.DeleteDataKeyRequest{Name: "domains/acme/dataKeys/k2"}} {
		name := protoreflect.Name(strings.TrimSuffix(string(gone.ProtoReflect().Descriptor().Name()), "Request"))
		if _, r := w.send(t.Context(), name, gone); r != (refusal{}) {
			t.Fatal(r)
		}
	}
	exists := func(reason string) refusal { return refusal{Code: codes.AlreadyExists, Reason: reason} }
	deleted := refusal{Code: codes.FailedPrecondition, Reason: "DATA_KEY_ID_DELETED"}
	w.run([]badCall{
		{"taken", "CreateDomain", spoiling(func(m *pb.CreateDomainRequest) { m.DomainId = "acme" }), exists("DOMAIN_ALREADY_EXISTS")},
		{"deleted", "CreateDomain", spoiling(func(m *pb.CreateDomainRequest) { m.DomainId = "empty" }), exists("DOMAIN_ALREADY_EXISTS")},
		{"taken", "CreateGrant", spoiling(func(m *pb.CreateGrantRequest) { m.GrantId = "orders" }), exists("GRANT_ALREADY_EXISTS")},
		{"the broker's own", "CreateGrant", spoiling(func(m *pb.CreateGrantRequest) { m.GrantId = "keybroker-worker" }), exists("GRANT_ALREADY_EXISTS")},
		{"taken", "CreateDataKey", spoiling(func(m *pb.CreateDataKeyRequest) { m.DataKeyId = "k1" }), exists("DATA_KEY_ALREADY_EXISTS")},
		{"deleted", "CreateDataKey", spoiling(func(m *pb.CreateDataKeyRequest) { m.DataKeyId = "k2" }), deleted},
		{"taken", "ImportDataKeys", spoiling(func(m *pb.ImportDataKeysRequest) { m.Items[0].DataKeyId = "k1" }), exists("DATA_KEY_ALREADY_EXISTS")},
		{"deleted", "ImportDataKeys", spoiling(func(m *pb.ImportDataKeysRequest) { m.Items[0].DataKeyId = "k2" }), deleted},
	})
}
