package awskms

import (
	"io"
	"net"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
)

// newClient makes the SDK's client for one Region and role. It is made from
// options alone, never from an aws.Config, so neither environment nor files have
// a say in it. The SDK does not retry: all its callers would share one bucket of
// attempts, and it takes the permanent LimitExceededException for a throttling.
func newClient(cfg *Config, region string, as aws.CredentialsProvider, transport http.RoundTripper) *kms.Client {
	o := kms.Options{
		Region:           region,
		Credentials:      as,
		HTTPClient:       direct{transport},
		Retryer:          aws.NopRetryer{},
		RetryMaxAttempts: 1,
	}
	if cfg.BaseEndpoint != "" {
		o.BaseEndpoint = &cfg.BaseEndpoint
	} else if cfg.FIPS {
		o.EndpointOptions.UseFIPSEndpoint = aws.FIPSEndpointStateEnabled
	}
	return kms.New(o)
}

// direct hands requests to a transport without what http.Client adds to that:
// KMS redirects nobody and sets no cookies, and time limits come by context.
type direct struct{ transport http.RoundTripper }

// Do implements kms.HTTPClient. The SDK closes the body as soon as there is an
// answer, while the transport may still look for the body's end. A closed body
// tells a Read that it is at its end, but fails a WriteTo, whereupon the transport
// drops the connection in the middle of the answer. So WriteTo is hidden.
func (d direct) Do(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		sent := *r
		sent.Body = struct{ io.ReadCloser }{r.Body}
		r = &sent
	}
	return d.transport.RoundTrip(r)
}

// newTransport is sized so that calls in flight each keep their connection.
// patience is how long an answer may take; it leaves time for another attempt.
func newTransport(connections int, patience time.Duration) *http.Transport {
	dialer := &net.Dialer{Timeout: 3 * time.Second, KeepAlive: 30 * time.Second}
	return &http.Transport{
		Proxy:                 nil, // not even from the environment
		DialContext:           dialer.DialContext,
		ForceAttemptHTTP2:     true,
		TLSHandshakeTimeout:   5 * time.Second,
		ResponseHeaderTimeout: patience,
		MaxIdleConns:          0, // no bound over all hosts
		MaxIdleConnsPerHost:   connections,
		IdleConnTimeout:       60 * time.Second,
		DisableCompression:    true, // ciphertext does not compress
	}
}
