package badinput_test

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	pb "github.com/keybroker/keybroker/proto/keybroker/v1"
	"github.com/keybroker/keybroker/test/harness"
)

// TestBadPasses: how a pass of ReencryptStream may begin wrong, and what else is
// said about the keys that a service keeps itself.
func TestBadPasses(t *testing.T) {
	w := newWorld(t, harness.Config{})
	header := func(change func(*pb.ReencryptStreamRequest_Header)) *pb.ReencryptStreamRequest {
		in := w.good("ReencryptStream").(*pb.ReencryptStreamRequest)
		change(in.GetHeader())
		return in
	}
	grant := func(name string) func(*pb.ReencryptStreamRequest_Header) {
		return func(h *pb.ReencryptStreamRequest_Header) {
			h.Owner = &pb.ReencryptStreamRequest_Header_Grant{Grant: name}
		}
	}
	role := func(arn string) func(*pb.ReencryptStreamRequest_Header) {
		return func(h *pb.ReencryptStreamRequest_Header) {
			h.Owner = &pb.ReencryptStreamRequest_Header_GranteePrincipal{GranteePrincipal: arn}
		}
	}
	token := func(text string) func(*pb.ReencryptStreamRequest_Header) {
		return func(h *pb.ReencryptStreamRequest_Header) { h.ResumeToken = text }
	}
	none := func(reason string) refusal { return refusal{Code: codes.NotFound, Reason: reason} }
	for what, test := range map[string]struct {
		in   *pb.ReencryptStreamRequest
		want refusal
	}{
		"nothing":                   {&pb.ReencryptStreamRequest{}, invalid("FIELD_INVALID", "message")},
		"items first":               {&pb.ReencryptStreamRequest{Message: &pb.ReencryptStreamRequest_Items_{Items: &pb.ReencryptStreamRequest_Items{Items: []*pb.ReencryptStreamRequest_Item{{ItemId: "1"}}}}}, invalid("FIELD_INVALID", "header")},
		"complete first":            {&pb.ReencryptStreamRequest{Message: &pb.ReencryptStreamRequest_Complete_{Complete: &pb.ReencryptStreamRequest_Complete{}}}, invalid("FIELD_INVALID", "header")},
		"no owner":                  {header(func(h *pb.ReencryptStreamRequest_Header) { h.Owner = nil }), invalid("FIELD_INVALID", "header.owner")},
		"no domain":                 {header(func(h *pb.ReencryptStreamRequest_Header) { h.Parent = "" }), invalid("NAME_INVALID", "header.parent")},
		"a malformed domain":        {header(func(h *pb.ReencryptStreamRequest_Header) { h.Parent = "domains/Broken" }), invalid("NAME_INVALID", "header.parent")},
		"a malformed grant":         {header(grant("own")), invalid("NAME_INVALID", "header.grant")},
		"a grant of another domain": {header(grant("domains/acme/grants/orders")), invalid("NAME_INVALID", "header.grant")},
		"a grant of the broker's": {header(func(h *pb.ReencryptStreamRequest_Header) {
			h.Parent = "domains/acme"
			grant("domains/acme/grants/orders")(h)
		}), refusal{Code: codes.FailedPrecondition, Reason: "GRANT_NOT_SELF"}},
		"an absent grant":            {header(grant("domains/broken/grants/none")), none("GRANT_NOT_FOUND")},
		"a role without a grant":     {header(role("arn:aws:iam::222233334444:role/none")), refusal{Code: codes.FailedPrecondition, Reason: "GRANT_NOT_SELF"}},
		"no role":                    {header(role("orders")), invalid("GRANTEE_NOT_ALLOWED", "header.grantee_principal")},
		"a token of words":           {header(token("the second page")), invalid("RESUME_TOKEN_INVALID", "header.resume_token")},
		"a token of nothing of ours": {header(token(strings.Repeat("A", 80))), invalid("RESUME_TOKEN_INVALID", "header.resume_token")},
		"a token of 1,025 letters":   {header(token(strings.Repeat("A", 1025))), invalid("RESUME_TOKEN_INVALID", "header.resume_token")},
	} {
		w.refused("ReencryptStream, "+what, "ReencryptStream", test.in, test.want)
	}
	w.run([]badCall{
		{"of the broker's", "OverrideSelfInventory", spoiling(func(m *pb.OverrideSelfInventoryRequest) { m.Name = "domains/acme/grants/orders" }), refusal{Code: codes.FailedPrecondition, Reason: "GRANT_NOT_SELF"}},
		{"no reason", "OverrideSelfInventory", spoiling(func(m *pb.OverrideSelfInventoryRequest) { m.Reason = "" }), invalid("FIELD_INVALID", "reason")},
	})
}
