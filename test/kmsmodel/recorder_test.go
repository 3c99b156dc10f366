package kmsmodel

import (
	"errors"
	"net/http"
	"os"
	"strings"
	"testing"
)

// tiny is a model of two operations in botocore's form.
const tiny = `{
  "operations": {
    "Seal": {"input": {"shape": "In"}, "output": {"shape": "Out"}, "errors": [{"shape": "DisabledException"}]},
    "Drop": {"input": {"shape": "In"}},
    "GetKeyLastUsage": {}
  },
  "shapes": {
    "In": {"type": "structure", "required": ["KeyId"], "members": {
      "KeyId": {"shape": "Id"}, "Kind": {"shape": "Kind"}, "Days": {"shape": "Days"}, "Pairs": {"shape": "Pairs"}}},
    "Out": {"type": "structure", "required": ["Blob"], "members": {
      "Blob": {"shape": "Blob"}, "At": {"shape": "Time"}, "Kinds": {"shape": "Kinds"}, "Sure": {"shape": "Bool"}}},
    "Id": {"type": "string", "min": 1, "max": 8, "pattern": "[\\u0020-\\u007e]+"},
    "Kind": {"type": "string", "enum": ["A", "B"]},
    "Kinds": {"type": "list", "member": {"shape": "Kind"}, "max": 2},
    "Days": {"type": "integer", "min": 7, "max": 30},
    "Pairs": {"type": "map", "key": {"shape": "Id"}, "value": {"shape": "Id"}},
    "Blob": {"type": "blob", "min": 1, "max": 3},
    "Time": {"type": "timestamp"},
    "Bool": {"type": "boolean"}
  }
}`

// Each rule is shown to be able to fail, and to leave alone what it should.
func TestJudge(t *testing.T) {
	good := http.Header{"Content-Type": {"application/x-amz-json-1.1"}, "X-Amzn-Requestid": {"1"}}
	ok := func(request, answer string) Exchange {
		return Exchange{Operation: "Seal", Request: []byte(request), Status: 200, Header: good, Answer: []byte(answer)}
	}
	refused := func(status int, answer string) Exchange {
		return Exchange{Operation: "Seal", Request: []byte(`{"Days":1}`), Status: status, Header: good, Answer: []byte(answer)}
	}
	const in, out = `{"KeyId":"k"}`, `{"Blob":"eA=="}`
	for name, tc := range map[string]struct {
		e    Exchange
		want string // part of the only fault; empty if there must be none
	}{
		"plain":             {ok(in, out), ""},
		"every member":      {ok(`{"KeyId":"k","Kind":"A","Days":7,"Pairs":{"a":"b"}}`, `{"Blob":"eA==","At":1.5,"Kinds":["A","B"],"Sure":true}`), ""},
		"null":              {ok(`{"KeyId":"k","Days":null}`, out), ""},
		"member unknown":    {ok(`{"KeyId":"k","More":1}`, out), ""},
		"accepted, no id":   {ok(`{}`, out), "request lacks KeyId and was accepted"},
		"accepted, long":    {ok(`{"KeyId":"123456789"}`, out), "request.KeyId has the length 9, want at least 1 and at most 8 and was accepted"},
		"accepted, pattern": {ok(`{"KeyId":"ä"}`, out), "does not match"},
		"accepted, number":  {ok(`{"KeyId":"k","Days":31}`, out), "request.Days has the value 31"},
		"accepted, enum":    {ok(`{"KeyId":"k","Kind":"C"}`, out), "request.Kind=C is not in the model and was accepted"},
		"accepted, type":    {ok(`{"KeyId":7}`, out), "request.KeyId is float64, want a string"},
		"accepted, map":     {ok(`{"KeyId":"k","Pairs":{"a":"123456789"}}`, out), "request.Pairs.value has the length 9"},
		"no JSON":           {ok(in, `{`), "is no JSON object"},
		"answer lacks":      {ok(in, `{}`), "answer lacks Blob"},
		"answer has more":   {ok(in, `{"Blob":"eA==","Extra":1}`), "answer.Extra is not in the model"},
		"answer, enum":      {ok(in, `{"Blob":"eA==","Kinds":["C"]}`), "answer.Kinds[0]=C is not in the model"},
		"answer, list":      {ok(in, `{"Blob":"eA==","Kinds":["A","B","A"]}`), "answer.Kinds has the length 3"},
		"answer, no list":   {ok(in, `{"Blob":"eA==","Kinds":"A"}`), "want a list"},
		"answer, base64":    {ok(in, `{"Blob":"?"}`), "is no base64"},
		"answer, empty":     {ok(in, `{"Blob":""}`), "answer.Blob has the length 0"},
		"answer, time":      {ok(in, `{"Blob":"eA==","At":"2026"}`), "want seconds since 1970"},
		"answer, boolean":   {ok(in, `{"Blob":"eA==","Sure":"true"}`), "want a boolean"},
		"no output":         {Exchange{Operation: "Drop", Request: []byte(in), Status: 200, Header: good, Answer: []byte(`{}`)}, ""},
		"an output":         {Exchange{Operation: "Drop", Request: []byte(in), Status: 200, Header: good, Answer: []byte(`{"a":1}`)}, "has members"},
		"content type":      {Exchange{"Seal", []byte(in), 200, http.Header{"X-Amzn-Requestid": {"1"}}, []byte(out), false}, "Content-Type"},
		"request id":        {Exchange{"Seal", []byte(in), 200, http.Header{"Content-Type": good["Content-Type"]}, []byte(out), false}, "request id"},

		"declared":         {refused(400, `{"__type":"DisabledException","message":"m"}`), ""},
		"common":           {refused(400, `{"__type":"ValidationException","message":"m"}`), ""},
		"internal":         {refused(500, `{"__type":"KMSInternalException","message":"m"}`), ""},
		"not offered":      {refused(400, `{"__type":"UnsupportedOperationException","message":"localkms does not support Recipient."}`), ""},
		"undeclared":       {refused(400, `{"__type":"NotFoundException","message":"m"}`), "the code NotFoundException, which the operation does not declare"},
		"unsupported":      {refused(400, `{"__type":"UnsupportedOperationException"}`), "does not declare"},
		"without code":     {refused(400, `{"message":"m"}`), "has no __type"},
		"empty message":    {refused(400, `{"__type":"DisabledException","message":""}`), "empty message"},
		"another member":   {refused(400, `{"__type":"DisabledException","Message":"m"}`), "has the member Message"},
		"status":           {refused(409, `{"__type":"DisabledException"}`), "has status 409"},
		"status of a code": {refused(500, `{"__type":"DisabledException"}`), "has status 500 and code DisabledException"},
	} {
		t.Run(name, func(t *testing.T) {
			r := NewRecorder(mustParse(t, tiny))
			r.Judge(tc.e)
			faults := r.Faults()
			switch {
			case tc.want == "" && len(faults) > 0:
				t.Errorf("faults %q, want none", faults)
			case tc.want != "" && (len(faults) != 1 || !strings.Contains(faults[0], tc.want) || !strings.Contains(faults[0], "(TestJudge")):
				t.Errorf("faults %q, want one with %q, by this test", faults, tc.want)
			}
		})
	}
}

// A model that is older than what it judges knows only what is wrong in any case.
func TestOldModel(t *testing.T) {
	r := NewRecorder(mustParse(t, strings.Replace(tiny, "GetKeyLastUsage", "Other", 1)))
	good := http.Header{"Content-Type": {"application/x-amz-json-1.1"}, "X-Amzn-Requestid": {"1"}}
	r.Judge(Exchange{"Seal", []byte(`{"Kind":"C"}`), 200, good, []byte(`{"Blob":"eA==","Extra":1}`), false})
	r.Judge(Exchange{"New", []byte(`{}`), 200, good, []byte(`{"x":1}`), false})
	r.Judge(Exchange{"New", []byte(`{}`), 400, good, []byte(`{"__type":"NewException"}`), false})
	r.Judge(Exchange{"Seal", []byte(`{}`), 400, good, []byte(`{"__type":"NewException"}`), false})
	if faults := r.Faults(); len(faults) != 0 {
		t.Errorf("faults %q", faults)
	}
	for _, want := range []string{"4 exchanges of 2 operations", "Seal request lacks KeyId", "Seal request.Kind=C", "Seal answer.Extra", "New the operation", "New NewException"} {
		if !strings.Contains(r.Summary(), want) {
			t.Errorf("%q is not in: %s", want, r.Summary())
		}
	}
	r.Judge(Exchange{"Seal", nil, 200, good, []byte(`{"Blob":7}`), false})
	if faults := r.Faults(); len(faults) != 1 {
		t.Errorf("faults %q, want one", faults)
	}
}

// The model that is installed has what this one is made after.
func TestLoad(t *testing.T) {
	m, err := Load()
	if errors.Is(err, ErrNotInstalled) && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if m.Version == "" || !m.Knows("ReEncrypt") || m.Knows("Fly") || len(m.operations) < 40 || m.shapes["CreateGrantRequest"] == nil {
		t.Errorf("botocore %q with %d operations", m.Version, len(m.operations))
	}
	for name, s := range m.shapes {
		if s.Type == "" {
			t.Errorf("%s has no type", name)
		}
	}
}

func mustParse(t *testing.T, text string) *Model {
	t.Helper()
	m, err := parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return m
}
