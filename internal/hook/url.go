package hook

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/rebake/rebake/internal/event"
)

// tries is how often a notice is posted to a URL that does not take it now.
const tries = 3

// pause is the time before the second try; before the third it is twice that.
const pause = 250 * time.Millisecond

// post delivers to a URL. A receiver tells repeated deliveries by their id.
func post(ctx context.Context, address string, limit time.Duration, id string, body []byte) error {
	u, err := url.Parse(address)
	if err != nil { // Check refused it
		return errors.New("its url cannot be read: mend the hook in the template")
	}
	c := client(limit)
	for try := 1; ; try++ {
		again, err := once(ctx, c, u, id, body)
		if err == nil || !again || try == tries {
			return err
		}
		t := time.NewTimer(pause << (try - 1))
		select {
		case <-ctx.Done():
			t.Stop()
			return err
		case <-t.C:
		}
	}
}

// client makes a connection for each delivery: one that was kept since the last
// stage may be dead, and a POST is not repeated on another by itself.
func client(limit time.Duration) *http.Client {
	dial := &net.Dialer{Timeout: limit / tries} // a host that does not answer leaves time to try again
	return &http.Client{
		Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, DialContext: dial.DialContext,
			DisableKeepAlives: true, ForceAttemptHTTP2: true, MaxResponseHeaderBytes: 64 << 10},
		CheckRedirect: func(to *http.Request, via []*http.Request) error {
			from := via[0]
			if to.URL.Host != from.URL.Host || to.URL.Scheme != from.URL.Scheme || to.Method != from.Method || len(via) > tries {
				return http.ErrUseLastResponse // the notice is for that host, and is not to arrive as a GET without it
			}
			return nil
		},
	}
}

// once posts once; again says that another try may succeed.
func once(ctx context.Context, c *http.Client, u *url.URL, id string, body []byte) (again bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(body))
	if err != nil {
		return false, errors.New("its url cannot be asked: mend the hook in the template")
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "rebake")
	req.Header.Set("X-Rebake-Delivery", id)
	res, err := c.Do(req)
	if err != nil {
		return true, errors.New(without(u, err))
	}
	defer res.Body.Close()
	if res.StatusCode/100 == 2 {
		return false, nil
	}
	again = res.StatusCode >= 500 || res.StatusCode == http.StatusTooManyRequests
	status := fmt.Sprintf("%d %s", res.StatusCode, http.StatusText(res.StatusCode)) // not the receiver's own words
	if res.StatusCode/100 == 3 {
		return again, fmt.Errorf("it answered %s, which leads to another host or loses the notice: give the hook the address that takes it", status)
	}
	const enough = 4 << 10 // bytes; the rest is not read
	body, _ = io.ReadAll(io.LimitReader(res.Body, enough))
	said := oneLine(hide(u, string(body)))
	if len(said) > most {
		said = strings.ToValidUTF8(said[:most], "") + "…"
	}
	return again, fmt.Errorf("it answered %s: %s", status, cmp.Or(said, "nothing more"))
}

// without is the text of an error of the client without the URL.
func without(u *url.URL, err error) string {
	var outer *url.Error
	for errors.As(err, &outer) {
		err = outer.Err
	}
	return hide(u, err.Error())
}

// hide takes out of a text whatever of the URL may be a secret: all but its host.
func hide(u *url.URL, text string) string {
	var red event.Redactor
	red.Add(u.RawQuery, u.Fragment, u.User.Username())
	if password, ok := u.User.Password(); ok {
		red.Add(password, u.User.String())
	}
	for _, values := range u.Query() {
		red.Add(values...)
	}
	const long = 8 // bytes; what is shorter is a word
	for _, part := range append(strings.Split(u.Path, "/"), u.Path, u.EscapedPath()) {
		if len(part) >= long {
			red.Add(part)
		}
	}
	return red.Clean(text)
}
