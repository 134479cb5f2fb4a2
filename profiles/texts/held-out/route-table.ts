export type Method = "GET" | "POST" | "PUT" | "DELETE";

export interface Request {
  readonly method: Method;
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
}

export interface Response {
  status: number;
  body: string;
  headers?: Record<string, string>;
}

export type Params = Readonly<Record<string, string>>;
export type Handler = (request: Request, params: Params) => Response | Promise<Response>;

interface Node {
  readonly children: Map<string, Node>;
  parameter?: { name: string; node: Node };
  readonly handlers: Map<Method, Handler>;
}

function emptyNode(): Node {
  return { children: new Map(), handlers: new Map() };
}

function segmentsOf(path: string): string[] {
  return path.split("/").filter((segment) => segment.length > 0);
}

/** Finds the handler of a request. `/users/:id` matches `/users/42` with `{ id: "42" }`. */
export class RouteTable {
  private readonly root: Node = emptyNode();

  add(method: Method, pattern: string, handler: Handler): this {
    let node = this.root;
    for (const segment of segmentsOf(pattern)) {
      node = segment.startsWith(":")
        ? this.parameterNode(node, segment.slice(1), pattern)
        : this.childNode(node, segment);
    }
    if (node.handlers.has(method)) {
      throw new Error(`${method} ${pattern} is registered twice`);
    }
    node.handlers.set(method, handler);
    return this;
  }

  async handle(request: Request): Promise<Response> {
    const params: Record<string, string> = {};
    let node: Node | undefined = this.root;
    for (const segment of segmentsOf(request.path)) {
      const child: Node | undefined = node.children.get(segment);
      if (child === undefined && node.parameter !== undefined) {
        params[node.parameter.name] = decodeURIComponent(segment);
      }
      node = child ?? node.parameter?.node;
      if (node === undefined) {
        return { status: 404, body: "not found" };
      }
    }
    const handler = node.handlers.get(request.method);
    if (handler === undefined) {
      const allow = [...node.handlers.keys()].sort().join(", ");
      return allow === ""
        ? { status: 404, body: "not found" }
        : { status: 405, body: "method not allowed", headers: { allow } };
    }
    return handler(request, params);
  }

  private childNode(node: Node, segment: string): Node {
    const known = node.children.get(segment) ?? emptyNode();
    node.children.set(segment, known);
    return known;
  }

  private parameterNode(node: Node, name: string, pattern: string): Node {
    node.parameter ??= { name, node: emptyNode() };
    if (node.parameter.name !== name) {
      throw new Error(`${pattern}: the parameter is called :${node.parameter.name} elsewhere`);
    }
    return node.parameter.node;
  }
}
