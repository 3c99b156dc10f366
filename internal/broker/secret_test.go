package broker_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/keybroker/keybroker/internal/broker"
)

// T8, T9: a secret says nothing, however it is printed.
func TestSecretsSayNothing(t *testing.T) {
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%b", "%c", "%U", "%t"} {
		for _, v := range []any{broker.Secret("canary"), broker.WrappedKey{Ciphertext: broker.Secret("canary")}, []broker.Secret{broker.Secret("canary")}} {
			text := fmt.Sprintf(verb, v)
			for _, leak := range []string{"canary", "63616e617279", "63616E617279", "99 97 110", "0x63", "U+0063"} {
				if strings.Contains(text, leak) {
					t.Errorf("%s of %T printed %s", verb, v, text)
				}
			}
		}
	}
}

// A context tells its keys and no value, in whatever it is printed.
func TestContextsTellNoValues(t *testing.T) {
	c := broker.Context{"tenant": "canary"}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		for _, v := range []any{c, broker.NewDataKey{Context: c}, broker.NewGrant{Constraint: broker.Constraint{Subset: c}},
			broker.ImportDataKeys{Items: []broker.ImportItem{{SourceContext: c}}}, broker.ReEncrypt{SourceContext: c}} {
			text := fmt.Sprintf(verb, v)
			if strings.Contains(text, "canary") || strings.Contains(text, "63616e617279") || !strings.Contains(text, "tenant") {
				t.Errorf("%s of %T printed %s", verb, v, text)
			}
		}
	}
	var out bytes.Buffer
	slog.New(slog.NewTextHandler(&out, nil)).Info("test", "context", c, "call", broker.NewDataKey{Context: c})
	slog.New(slog.NewJSONHandler(&out, nil)).Info("test", "context", c)
	if strings.Contains(out.String(), "canary") {
		t.Errorf("logged %s", out.String())
	}
}

func TestSecretsSayNothingToLogs(t *testing.T) {
	view := broker.GrantView{Tokens: []broker.Secret{broker.Secret("canary")}}
	var out bytes.Buffer
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(h).Info("test", "secret", broker.Secret("canary"), "view", view, "error", fmt.Errorf("of %v", view))
	}
	text, err := json.Marshal(view)
	if err != nil {
		t.Fatal(err)
	}
	out.Write(text)
	for _, leak := range []string{"canary", "Y2FuYXJ5", "99 97 110"} {
		if strings.Contains(out.String(), leak) {
			t.Errorf("%q is in %s", leak, out.String())
		}
	}
}
