package rpc

import (
	"encoding/binary"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/problem"
)

// form is one way to write a request: a protocol and an encoding (https://connectrpc.com/docs/protocol,
// https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md).
type form struct {
	contentType string
	json        bool
	plain       bool   // nothing but a POST of the message: what direct takes
	framed      bool   // the message has a prefix of five bytes
	grpc        bool   // gRPC or gRPC-Web
	stream      bool   // Connect's form for streams
	encoding    string // the header that names a compression
}

// forms are the ways that are understood, by content type.
var forms = formTable()

func formTable() map[string]form {
	out := make(map[string]form)
	for _, codec := range codecNames {
		json := codec != codecProto
		for _, f := range []form{
			{contentType: "application/" + codec, plain: codec != codecJSONCharset, encoding: "Content-Encoding"},
			{contentType: "application/connect+" + codec, framed: true, stream: true, encoding: "Connect-Content-Encoding"},
			{contentType: "application/grpc+" + codec, framed: true, grpc: true, encoding: "Grpc-Encoding"},
			{contentType: "application/grpc-web+" + codec, framed: true, grpc: true, encoding: "Grpc-Encoding"},
		} {
			f.json = json
			out[f.contentType] = f
		}
	}
	for _, name := range []string{"application/grpc", "application/grpc-web"} {
		out[name] = form{contentType: name, framed: true, grpc: true, encoding: "Grpc-Encoding"}
	}
	return out
}

// parsed is the form of a request and the time that its sender gives it (below 0: none was said).
type parsed struct {
	form
	timeout time.Duration
}

// misshaped is a request that is refused for its form, with the HTTP status that says so; 0: the problem's own.
type misshaped struct {
	problem *problem.Problem
	status  int
}

// formOf checks a request's verb, content type, encoding, version and timeout, so that connect, whose own refusals
// have no reason and are not accounted for, never finds anything to refuse in them.
func formOf(r *http.Request, rt *route) (parsed, *misshaped) {
	w := parsed{timeout: -1}
	if r.Method != http.MethodPost {
		return w, &misshaped{problem.New(problem.ReasonUnsupported, "a method is called by POST").WithFix("use POST"), http.StatusMethodNotAllowed}
	}
	h := r.Header
	var known bool
	if w.form, known = understood(h.Get("Content-Type")); !known || (!w.grpc && w.stream != rt.stream) {
		return w, &misshaped{
			problem.New(problem.ReasonUnsupported, "this method does not take that content type").WithFix("use application/proto or application/json; for streams, application/connect+proto or +json"),
			http.StatusUnsupportedMediaType,
		}
	}
	for _, name := range [...]string{"Content-Encoding", w.encoding} {
		if v := h[name]; len(v) > 1 || (len(v) == 1 && v[0] != "" && v[0] != "identity") {
			return w, &misshaped{problem: problem.New(problem.ReasonUnsupported, "requests are not compressed here").WithFix("send the request as it is, without %s", name)}
		}
	}
	timeout := "Connect-Timeout-Ms"
	if w.grpc {
		timeout = "Grpc-Timeout"
	} else if v := h["Connect-Protocol-Version"]; len(v) > 1 || (len(v) == 1 && v[0] != "1") {
		return w, &misshaped{problem: problem.New(problem.ReasonUnsupported, "this version of Connect's protocol is not known here").WithFix("send Connect-Protocol-Version: 1")}
	}
	if v := h[timeout]; len(v) > 0 {
		d, ok := parseTimeout(v, w.grpc)
		if !ok {
			return w, &misshaped{problem: problem.New(problem.ReasonInvalid, "%s is not a time", timeout)}
		}
		w.timeout = d
	}
	return w, nil
}

// understood looks a content type up, also in other spellings (RFC 9110, section 8.3.2).
func understood(contentType string) (form, bool) {
	f, ok := forms[contentType]
	if ok {
		return f, true
	}
	base, params, err := mime.ParseMediaType(contentType)
	if err != nil {
		return form{}, false
	}
	if v, ok := params["charset"]; ok {
		params["charset"] = strings.ToLower(v)
	}
	f, ok = forms[mime.FormatMediaType(base, params)]
	return f, ok
}

// parseTimeout reads milliseconds of at most 10 digits (Connect), or at most 8 digits and a unit (gRPC).
func parseTimeout(v []string, grpc bool) (time.Duration, bool) {
	if len(v) != 1 || v[0] == "" {
		return 0, false
	}
	digits, unit, most := v[0], time.Millisecond, 10
	if grpc {
		units := map[byte]time.Duration{'H': time.Hour, 'M': time.Minute, 'S': time.Second, 'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond}
		last := len(digits) - 1
		unit, digits, most = units[digits[last]], digits[:last], 8
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil || unit == 0 || len(digits) > most {
		return 0, false
	}
	return time.Duration(min(n, uint64(maxTimeout/unit))) * unit, true
}

// maxTimeout is more than any request is given here, and far from what a Duration can't hold.
const maxTimeout = 365 * 24 * time.Hour

// frameHeader precedes a message in a framed form: flags, and the message's length.
const frameHeader = 5

// checkFrame refuses a framed body that is not exactly one message: every method takes one, and connect reads a second
// only to refuse it.
func checkFrame(data []byte) *problem.Problem {
	switch {
	case len(data) < frameHeader:
		return problem.New(problem.ReasonInvalid, "the body has no message")
	case data[0]&1 != 0:
		return problem.New(problem.ReasonUnsupported, "requests are not compressed here").WithFix("send the message as it is")
	case data[0] != 0:
		return problem.New(problem.ReasonInvalid, "the message's prefix has flags that are not known")
	}
	length, rest := uint64(binary.BigEndian.Uint32(data[1:frameHeader])), uint64(len(data)-frameHeader)
	switch {
	case length > rest:
		return problem.New(problem.ReasonInvalid, "the message is shorter than its prefix says")
	case length < rest:
		return problem.New(problem.ReasonInvalid, "there is more in the body than one message")
	}
	return nil
}

// statusWriter answers with another status than the answer's own, for what HTTP has a status of its own for.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(int) { w.ResponseWriter.WriteHeader(w.status) }

// Unwrap is for http.ResponseController.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
