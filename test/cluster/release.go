package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"regexp"
	"strings"
)

// The release that the test installs, and what the chart calls its Deployment.
const (
	release    = "keybroker-test"
	deployment = "deployment/" + release
	ours       = "app.kubernetes.io/instance=" + release
	brokers    = ours + ",app.kubernetes.io/component=broker"
)

// A cluster is one namespace, by helm and kubectl.
type cluster struct{ settings }

// command runs a program and gives what it printed; an error quotes it.
func command(ctx context.Context, stdin, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

func (c cluster) helmDo(ctx context.Context, args ...string) error {
	_, err := command(ctx, "", c.helm, append(args, "--namespace", c.namespace)...)
	return err
}

func (c cluster) kubectlDo(ctx context.Context, args ...string) (string, error) {
	return command(ctx, "", c.kubectl, append([]string{"--namespace", c.namespace}, args...)...)
}

// upgrade installs the chart, or upgrades the release, with further values.
func (c cluster) upgrade(ctx context.Context, verb string, values ...string) error {
	args := []string{verb, release, c.chart, "--values", c.values, "--wait", "--timeout", "5m"}
	for _, v := range values {
		args = append(args, "--set", v)
	}
	return c.helmDo(ctx, args...)
}

// pods are the names of the broker's pods. All of them are ready, and no container
// was ever restarted: neither a probe nor a crash ended one.
func (c cluster) pods(ctx context.Context) ([]string, error) {
	out, err := c.kubectlDo(ctx, "get", "pods", "--selector", brokers, "--field-selector", "status.phase=Running", "--output",
		`jsonpath={range .items[*]}{.metadata.name} {.metadata.deletionTimestamp} {.status.containerStatuses[0].ready} {.status.containerStatuses[0].restartCount}{"\n"}{end}`)
	if err != nil {
		return nil, err
	}
	var names []string
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 4: // on its way out
		case len(fields) != 3 || fields[1] != "true" || fields[2] != "0":
			return nil, fmt.Errorf("a pod is not ready, or was restarted: %s", line)
		default:
			names = append(names, fields[0])
		}
	}
	if len(names) == 0 {
		return nil, errors.New("there is no pod")
	}
	return names, nil
}

// refused runs broker in a pod with arguments that have to fail, in these words.
func (c cluster) refused(ctx context.Context, words string, args ...string) error {
	out, err := c.kubectlDo(ctx, append([]string{"exec", deployment, "--", "/broker"}, args...)...)
	if err == nil || !strings.Contains(out, words) {
		return fmt.Errorf("broker %s in a pod: want a failure that says %q, got %q", strings.Join(args, " "), words, out)
	}
	return nil
}

var forwarding = regexp.MustCompile(`127\.0\.0\.1:(\d+) -> 8443`)

// dial reaches the API of a pod by kubectl port-forward, which lives as long as the
// connection. When its pod goes, both end, and gRPC dials the next one.
func (c cluster) dial(ctx context.Context, _ string) (net.Conn, error) {
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	cmd := exec.CommandContext(life, c.kubectl, "--namespace", c.namespace, "port-forward", deployment, ":8443")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		end()
		return nil, err
	}
	stop := context.AfterFunc(ctx, end)
	lines := bufio.NewReader(out)
	line, _ := lines.ReadString('\n') // "" when it ends instead
	stop()
	go func() {
		_, _ = io.Copy(io.Discard, lines) // it says more with each connection
		_ = cmd.Wait()                    // it was killed
	}()
	m := forwarding.FindStringSubmatch(line)
	if m == nil {
		end()
		return nil, fmt.Errorf("kubectl port-forward says %q", line)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", "127.0.0.1:"+m[1])
	if err != nil {
		end()
		return nil, err
	}
	return forwarded{conn, end}, nil
}

// forwarded is a connection that ends the port-forward it came by.
type forwarded struct {
	net.Conn
	end context.CancelFunc
}

func (f forwarded) Close() error {
	f.end()
	return f.Conn.Close()
}
