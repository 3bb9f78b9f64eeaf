package ceremony

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// NamespaceRecovery is the SSHSIG namespace of recoveries. No key that signs in another one is listed for it.
const NamespaceRecovery = "recovery@bailment"

// Recovery is what the holders of recovery keys sign to replace the operators, in namespace recovery@bailment. All of them sign the same
// bytes.
type Recovery struct {
	Scope
	Base      string // digest of the manifest in force
	New       string // digest of the manifest that follows it: all of its files, but the operators
	Operators string // digest of the file that lists the operators
	Required  int    // distinct persons who must sign
	Delay     time.Duration
	Nonce     string    // 32 hex digits
	Expires   time.Time // until when it may begin, to the second
	Reason    string
	Before    []string // the operators in force, a line each: name, duties, fingerprints
	After     []string
}

const (
	recoveryTitle   = "bailment recovery v1"
	withdrawalTitle = "bailment recovery withdrawal v1"
	// recoveryAction is the one thing that a recovery does.
	recoveryAction = "operators.replace"
)

// MaxRecovery is the most bytes a recovery's text may have, so that it fits into an entry with its signatures.
const MaxRecovery = 14 << 10

// recoveryNames are the lines above the persons.
var recoveryNames = []string{"environment", "genesis", "epoch", "action", "base", "new", "operators", "required", "delay", "nonce", "expires", "reason"}

// Text is the text to sign.
func (r Recovery) Text() string {
	var b strings.Builder
	r.lines(&b, recoveryTitle)
	line := func(name, value string) { b.WriteString(name + " " + value + "\n") }
	line("action", recoveryAction)
	line("base", r.Base)
	line("new", r.New)
	line("operators", r.Operators)
	line("required", strconv.Itoa(r.Required))
	line("delay", r.Delay.String())
	line("nonce", r.Nonce)
	line("expires", r.Expires.UTC().Format(time.RFC3339))
	line("reason", strconv.QuoteToASCII(r.Reason))
	for _, x := range r.Before {
		line("before", x)
	}
	for _, x := range r.After {
		line("after", x)
	}
	return b.String()
}

// ParseRecovery reads a text back. It accepts exactly what Text writes of a recovery with a reason and with operators, before and after.
func ParseRecovery(text string) (Recovery, error) {
	var r Recovery
	bad := fmt.Errorf("not the text of a recovery of this version")
	if len(text) > MaxRecovery {
		return r, fmt.Errorf("the text of a recovery has over %d bytes", MaxRecovery)
	}
	v, rest, ok := head(text, recoveryTitle, recoveryNames)
	if !ok || v["action"] != recoveryAction {
		return r, bad
	}
	if err := r.read(v); err != nil {
		return r, bad
	}
	for _, line := range rest {
		name, value, _ := strings.Cut(line, " ")
		switch {
		case value == "":
			return r, bad
		case name == "before" && len(r.After) == 0:
			r.Before = append(r.Before, value)
		case name == "after":
			r.After = append(r.After, value)
		default:
			return r, bad
		}
	}
	if len(r.Before) == 0 || len(r.After) == 0 || r.Reason == "" || r.Text() != text {
		return r, bad
	}
	return r, nil
}

func (r *Recovery) read(v map[string]string) error {
	var err error
	if r.Scope, err = readScope(v); err != nil {
		return err
	}
	r.Base, r.New, r.Operators, r.Nonce = v["base"], v["new"], v["operators"], v["nonce"]
	if r.Required, err = strconv.Atoi(v["required"]); err != nil {
		return err
	}
	if r.Delay, err = time.ParseDuration(v["delay"]); err != nil {
		return err
	}
	if r.Expires, err = time.Parse(time.RFC3339, v["expires"]); err != nil {
		return err
	}
	r.Reason, err = strconv.Unquote(v["reason"])
	return err
}

// Withdrawal is what one of those signs who signed a recovery, in namespace recovery@bailment, to take his signature back: too few are left
// then. It is about one entry, so it needs no nonce.
type Withdrawal struct {
	Scope
	Recovery uint64 // the entry with which it began
	New      string // as in its text
	Person   string
	Reason   string
}

var withdrawalNames = []string{"environment", "genesis", "epoch", "recovery", "new", "person", "reason"}

// Text is the text to sign.
func (w Withdrawal) Text() string {
	var b strings.Builder
	w.lines(&b, withdrawalTitle)
	b.WriteString("recovery " + strconv.FormatUint(w.Recovery, 10) + "\n")
	b.WriteString("new " + w.New + "\n")
	b.WriteString("person " + w.Person + "\n")
	b.WriteString("reason " + strconv.QuoteToASCII(w.Reason) + "\n")
	return b.String()
}

// ParseWithdrawal reads a text back. It accepts exactly what Text writes of a withdrawal with a reason.
func ParseWithdrawal(text string) (Withdrawal, error) {
	var w Withdrawal
	bad := fmt.Errorf("not the text of a recovery's withdrawal of this version")
	if len(text) > maxText {
		return w, bad
	}
	v, rest, ok := head(text, withdrawalTitle, withdrawalNames)
	if !ok || len(rest) > 0 {
		return w, bad
	}
	var err error
	if w.Scope, err = readScope(v); err != nil {
		return w, bad
	}
	w.New, w.Person = v["new"], v["person"]
	if w.Recovery, err = strconv.ParseUint(v["recovery"], 10, 64); err != nil {
		return w, bad
	}
	if w.Reason, err = strconv.Unquote(v["reason"]); err != nil || w.Reason == "" || w.Text() != text {
		return w, bad
	}
	return w, nil
}
