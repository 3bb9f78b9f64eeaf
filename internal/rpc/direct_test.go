package rpc_test

import (
	"bytes"
	"io"
	"maps"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	pb "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/server/servertest"
)

// A plain call is answered without connect, and `Content-Encoding: identity`, which means nothing, makes it go through connect. Both
// must give the same status, headers and body, whatever is sent.
func TestDirect(t *testing.T) {
	h := servertest.Start(t, servertest.Options{})
	put(t, h.Login("alice"), "app/password", strings.Repeat("a value of four KiB ", 205))
	app := h.App("web-1")
	binary := func(m proto.Message) string {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	const get, back, write = "SecretService/Get", "SecretService/ReturnLease", "SecretService/Put"
	rows := []struct {
		name, method, contentType, body string
		header                          http.Header
		status                          int
	}{
		{"a read", get, "application/proto", binary(&pb.GetRequest{Secret: "app/password"}), nil, 200},
		{"a read with a receipt", get, "application/proto", binary(&pb.GetRequest{Secret: "app/password", Receipt: true}), nil, 200},
		{"a read as JSON", get, "application/json", `{"secret":"app/password"}`, nil, 200},
		{"with the protocol's version", get, "application/json", `{"secret":"app/password"}`, http.Header{"Connect-Protocol-Version": {"1"}}, 200},
		{"with another version", get, "application/json", `{"secret":"app/password"}`, http.Header{"Connect-Protocol-Version": {"2"}}, 400},
		{"with a timeout", get, "application/json", `{"secret":"app/password"}`, http.Header{"Connect-Timeout-Ms": {"5000"}}, 200},
		{"with no time at all", get, "application/json", `{"secret":"app/password"}`, http.Header{"Connect-Timeout-Ms": {"0"}}, 503},
		{"with a timeout of eleven digits", get, "application/json", `{"secret":"app/password"}`, http.Header{"Connect-Timeout-Ms": {"10000000000"}}, 400},
		{"with a timeout before now", get, "application/json", `{"secret":"app/password"}`, http.Header{"Connect-Timeout-Ms": {"-1"}}, 400},
		{"an unknown secret", get, "application/json", `{"secret":"app/unknown"}`, nil, 404},
		{"a secret of others", get, "application/proto", binary(&pb.GetRequest{Secret: "elsewhere/password"}), nil, 403},
		{"an empty body", get, "application/proto", "", nil, 400},
		{"an empty body as JSON", get, "application/json", "", nil, 400},
		{"broken JSON", get, "application/json", `{"secret":`, nil, 400},
		{"a JSON field that is not known", get, "application/json", `{"secret":"app/password","narrower":true}`, nil, 400},
		{"a JSON field of another type", get, "application/json", `{"secret":7}`, nil, 400},
		{"broken bytes", get, "application/proto", "\xff\xff\xff", nil, 400},
		{"a field that is not known", get, "application/proto", binary(&pb.GetRequest{Secret: "app/password"}) + "\xfa\x3e\x01x", nil, 400},
		{"a content type that is not known", get, "application/xml", "<secret/>", nil, 415},
		{"a content type in other case", get, "Application/JSON", `{"secret":"app/password"}`, nil, 200},
		{"a content type with a parameter", get, "application/json; charset=utf-8", `{"secret":"app/password"}`, nil, 200},
		{"a compressed body", get, "application/json", `{"secret":"app/password"}`, http.Header{"Content-Encoding": {"gzip"}}, 400},
		{"a lease that is not there", back, "application/json", `{"lease":"99999"}`, nil, 404},
		{"a write without a grant", write, "application/proto", binary(&pb.PutRequest{Secret: "app/password", Value: []byte("x")}), nil, 403},
	}
	client := h.Client(app.Cert, false)
	send := func(t *testing.T, method, contentType, body string, header http.Header) (int, http.Header, string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.URL()+"/bailment.v1."+method, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		maps.Copy(req.Header, header)
		req.Header.Set("Content-Type", contentType)
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		head := res.Header.Clone()
		for _, name := range []string{"Date", "Content-Length", "Accept-Encoding"} {
			head.Del(name) // what differs in each answer, the length that only the direct way tells, and connect's offer of no compression
		}
		return res.StatusCode, head, string(b)
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			status, header, body := send(t, row.method, row.contentType, row.body, row.header)
			by := http.Header{"Content-Encoding": {"identity"}}
			for k, v := range row.header {
				by[k] = v
			}
			wantStatus, wantHeader, wantBody := send(t, row.method, row.contentType, row.body, by)
			if status != row.status || wantStatus != row.status {
				t.Fatalf("status %d directly, %d by connect, want %d: %.300s", status, wantStatus, row.status, body)
			}
			if !maps.EqualFunc(header, wantHeader, func(a, b []string) bool { return strings.Join(a, "\n") == strings.Join(b, "\n") }) {
				t.Errorf("headers\n%v\n%v", header, wantHeader)
			}
			if a, b := steady(t, row.contentType, status, body), steady(t, row.contentType, wantStatus, wantBody); a != b {
				t.Errorf("bodies\n%.600s\n%.600s", a, b)
			}
		})
	}
}

var volatile = regexp.MustCompile(`"details":\[[^\]]*\]|"(requestId|index|expires|lease)": ?("[^"]*"|[0-9]+)|[ \n]`)

// steady is an answer without what differs from one to the next, and without the spaces that protojson varies on purpose.
func steady(t *testing.T, contentType string, status int, body string) string {
	t.Helper()
	if status != http.StatusOK || contentType != "application/proto" {
		return volatile.ReplaceAllString(body, "")
	}
	var m pb.GetResponse
	if err := proto.Unmarshal([]byte(body), &m); err != nil {
		t.Fatal(err)
	}
	if m.Entry.GetIndex() == 0 || m.Lease == 0 || len(m.Value) < 4000 {
		t.Fatalf("an answer that says too little: %v", &m)
	}
	if len(m.Receipt) > 0 && !bytes.HasPrefix(m.Receipt, []byte("c2sp.org/tlog-proof@v1")) {
		t.Fatalf("receipt %q", m.Receipt)
	}
	m.Entry, m.Expires, m.Lease, m.Receipt = nil, nil, 0, nil
	return m.String()
}

// The comparison means something: a plain read is really answered directly, which is seen by its
// length, and the other one by connect, which sends what is larger than net/http's buffer in chunks.
func TestDirectIsTaken(t *testing.T) {
	h := servertest.Start(t, servertest.Options{})
	put(t, h.Login("alice"), "app/password", strings.Repeat("x", 4096))
	client := h.Client(h.App("web-1").Cert, false)
	for encoding, want := range map[string]bool{"": true, "identity": false} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.URL()+"/bailment.v1.SecretService/Get", strings.NewReader(`{"secret":"app/password"}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		if encoding != "" {
			req.Header.Set("Content-Encoding", encoding)
		}
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if told := res.ContentLength > 4096; res.StatusCode != http.StatusOK || told != want {
			t.Errorf("Content-Encoding %q: %s, length %d", encoding, res.Status, res.ContentLength)
		}
	}
}
