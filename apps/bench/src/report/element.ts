/** What can stand in an element; text is escaped when the document is written. */
export type Child = Element | string;

/** Makes elements of one document: `make('td', { class: 'number' }, '4.21')`. */
export type ElementMaker = (name: string, attributes?: Readonly<Record<string, string>>, ...children: readonly Child[]) => Element;

/** The maker of a document's elements. */
export function elementMaker(document: Document): ElementMaker {
  return (name, attributes = {}, ...children) => {
    const element = document.createElement(name);
    for (const [attribute, value] of Object.entries(attributes)) element.setAttribute(attribute, value);
    element.append(...children);
    return element;
  };
}
